"""Logs as NDJSON: one JSON object a line, with the ids that tie it to a job. Installs nothing at import."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class NdjsonFormatter(logging.Formatter):
    """One record, one line: ts, level, logger, message, whatever ``extra`` held, and the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def install(*, level: str = "INFO") -> None:
    """Write the package's logs to standard error; Ray keeps that per process under its session's logs."""
    # Not `sys.stderr`: in a replica Serve puts its own logger there, which holds lines back until it has a thousand.
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(NdjsonFormatter())
    logger = logging.getLogger("dreamforge")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
