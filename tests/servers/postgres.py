"""Debian's PostgreSQL over a folder of its own, run as the package's user when we are root."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from dreamforge.embedded.process import Program, ServerProcess
from tests.servers import packages

PASSWORD = "of/the: user's @wn"
OWNER = "somebody"
_QUOTED_PASSWORD = "of%2Fthe%3A%20user%27s%20%40wn"
_START_SECONDS = 60.0


def require() -> None:
    """Skip the test where it is not installed."""
    packages.require(_binaries(), "postgresql")


def _binaries() -> Path | None:
    """The folder of the newest version's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


class DebianPostgres:
    """A PostgreSQL server with a password that has to be quoted in a URL.

    ``more``: settings, as `name=value`.
    """

    def __init__(self, *, port: int, log: Path, more: Sequence[str] = ()) -> None:
        self._binaries = _binaries()
        self._port = port
        self._log = log
        self._environment: Mapping[str, str] | None = None
        self._more = [argument for setting in more for argument in ("-c", setting)]
        self._user = "postgres" if os.geteuid() == 0 else None
        # Not below pytest's folder, which is closed to the server's user.
        self._folder = Path(tempfile.mkdtemp(prefix="df-debian-postgres-"))
        self._server: ServerProcess | None = None

    @property
    def folder(self) -> Path:
        """Where it keeps everything, readable for its user."""
        return self._folder

    def url(self, database: str = "postgres") -> str:
        """`postgresql://…` of one of its databases."""
        return f"postgresql://{OWNER}:{_QUOTED_PASSWORD}@127.0.0.1:{self._port}/{database}"

    def set_environment(self, environment: Mapping[str, str]) -> None:
        """What it finds there when it is started."""
        self._environment = environment

    def start(self) -> None:
        """Make the cluster the first time, start the server, and return once it answers."""
        data = self._folder / "data"
        if not data.exists():
            self._initialise(data)
        command = [
            f"{self._binaries}/postgres", "-D", str(data), "-h", "127.0.0.1", "-p", str(self._port),
            "-c", f"unix_socket_directories={self._folder}", "-c", "fsync=off", *self._more,
        ]  # fmt: skip
        self._server = ServerProcess(
            Program(
                name="Debian's PostgreSQL",
                command=command,
                log=self._log,
                environment=self._environment,
                user=self._user,
                stop_signal=signal.SIGINT,
            )
        )
        self._server.wait_until(self._answers, timeout=_START_SECONDS)

    def halt(self) -> None:
        """Shut it down; it can be started again."""
        if self._server is not None:
            self._server.stop(grace=8)

    def stop(self) -> None:
        """Shut it down and remove its folder."""
        self.halt()
        shutil.rmtree(self._folder)

    def _initialise(self, data: Path) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        if self._user is not None:
            for path in (self._folder, password):
                shutil.chown(path, self._user, self._user)
        command = [
            f"{self._binaries}/initdb", "-D", str(data), "-U", OWNER, f"--pwfile={password}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        ]  # fmt: skip
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd="/",
        )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
