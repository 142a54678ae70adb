"""Debian's Redis over a folder of its own."""

import shutil
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from dreamforge.embedded.process import Program, ServerProcess
from tests.servers import packages

PASSWORD = "s3same"
_START_SECONDS = 30.0


def require() -> None:
    """Skip the test where it is not installed."""
    packages.require(_binary(), "redis-server")


def _binary() -> str | None:
    return shutil.which("redis-server")


class DebianRedis:
    """A Redis server that keeps nothing."""

    def __init__(self, *, port: int, log: Path) -> None:
        self._port = port
        self._log = log
        self._server: ServerProcess | None = None

    def url(self) -> str:
        """`redis://…` of a database that is not the first."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self._port}/3"

    def start(self) -> None:
        """Start the server and return once it answers."""
        command = [
            str(_binary()), "--bind", "127.0.0.1", "--port", str(self._port), "--requirepass", PASSWORD,
            "--save", "", "--dir", str(self._log.parent),
        ]  # fmt: skip
        self._server = ServerProcess(Program(name="Debian's Redis", command=command, log=self._log))
        with Redis.from_url(self.url(), socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
            self._server.wait_until(lambda: _answers(client), timeout=_START_SECONDS)

    def stop(self) -> None:
        """Shut it down; it can be started again."""
        if self._server is not None:
            self._server.stop(grace=5)


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
