"""A Ray head as a child process, with token authentication and everything on loopback."""

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2

from dreamforge.embedded.ports import LOOPBACK, free_port
from dreamforge.embedded.process import Program, ServerProcess
from dreamforge.embedded.secrets import secret_file
from dreamforge.embedded.space import shared_memory_is_usable
from dreamforge.embedded.trouble import StackError
from dreamforge.settings import inherited_environment

_START_SECONDS = 90.0
_OBJECT_STORE = 128 * 1024 * 1024
PROJECT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class RayPorts:
    """The GCS' port and the dashboard's."""

    gcs: int
    dashboard: int


class RayHead:
    """A Ray cluster of one node. ``variables`` are what its workers shall find in their environment."""

    def __init__(
        self, *, data_dir: Path, ports: RayPorts, gpus: int, log: Path, token_file: Path, variables: Mapping[str, str]
    ) -> None:
        self._ports = ports
        self._gpus = gpus
        self._log = log
        self._token_file = token_file
        self._variables = variables
        self._session_link = log.parent / "ray-session"
        self.folder = ray_folder(data_dir)
        # Ray opens its folder to everybody: it lies inside of ours, which is closed.
        self._sessions = self.folder / "r"
        self._server: ServerProcess | None = None

    @property
    def process(self) -> ServerProcess | None:
        """The running `ray start --block`."""
        return self._server

    @property
    def dashboard_url(self) -> str:
        """The dashboard, and under `/api` everything that `serve deploy` and `ray job` speak to."""
        return f"http://{LOOPBACK}:{self._ports.dashboard}"

    @property
    def address(self) -> str:
        """`host:port` of the GCS, which further nodes would join."""
        return f"{LOOPBACK}:{self._ports.gcs}"

    def token(self) -> str:
        """What a client of the cluster must show."""
        return secret_file(self._token_file)

    def start(self) -> None:
        """Start the head."""
        self.token()
        self._own_folder()
        self._forget_old_sessions()
        ray = Path(sys.executable).parent / "ray"
        self._server = ServerProcess(
            Program(
                name="Ray",
                command=[str(ray), *self._arguments()],
                log=self._log,
                environment=self._environment(),
                # `ray start` waits for ever when they have ended in good order, as `ray stop` ends them.
                vital=("gcs_server", "raylet"),
            )
        )

    def wait_ready(self) -> str:
        """Return Ray's version once the dashboard answers. Raises ``StackError``."""
        if self._server is None:
            raise StackError("Ray was not started.")
        version: list[str] = []

        def answers() -> bool:
            try:
                version.append(dashboard.get("/api/version").raise_for_status().json()["ray_version"])
            except (httpx2.HTTPError, ValueError, KeyError):
                return False
            return True

        # One for all looks: each new client reads the certificates anew, which Ray's start would wait for.
        with httpx2.Client(base_url=self.dashboard_url, headers=authorization(self.token()), timeout=2) as dashboard:
            self._server.wait_until(answers, timeout=_START_SECONDS)
        self._session_link.unlink(missing_ok=True)
        self._session_link.symlink_to(self._sessions / "session_latest" / "logs")
        return version[-1]

    def stop(self, *, grace: float = 6.0) -> None:
        """End every process of the cluster."""
        if self._server is not None:
            self._server.stop(grace=grace)

    def _own_folder(self) -> None:
        # In a folder that everybody may write to: make sure that it is ours.
        self.folder.mkdir(mode=0o700, exist_ok=True)
        status = self.folder.lstat()
        if self.folder.is_symlink() or status.st_uid != os.getuid():
            raise StackError(f"{self.folder} belongs to somebody else; remove it, or set DREAMFORGE_DATA_DIR.")
        self.folder.chmod(0o700)

    def _forget_old_sessions(self) -> None:
        # The last one's logs may be wanted.
        sessions = sorted(path for path in self._sessions.glob("session_2*") if path.is_dir())
        for session in sessions[:-1]:
            shutil.rmtree(session, ignore_errors=True)
        # HAProxy's sockets and files, by the node's id.
        shutil.rmtree(self.folder / "h", ignore_errors=True)

    def _arguments(self) -> list[str]:
        return [
            "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true",
            f"--node-ip-address={LOOPBACK}", f"--port={self._ports.gcs}",
            f"--dashboard-host={LOOPBACK}", f"--dashboard-port={self._ports.dashboard}",
            f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
            "--min-worker-port=0", "--max-worker-port=0",
            f"--num-gpus={self._gpus}", f"--temp-dir={self._sessions}",
            # Images never pass through Ray: its store of shared objects can be small.
            f"--object-store-memory={_OBJECT_STORE}", *self._object_store_folder(),
        ]  # fmt: skip

    def _object_store_folder(self) -> list[str]:
        return [] if shared_memory_is_usable(2 * _OBJECT_STORE) else [f"--plasma-directory={self.folder}"]

    def _environment(self) -> dict[str, str]:
        proxy = self.folder / "h"
        # A token of the user's would go before the file that holds ours.
        inherited = {name: value for name, value in inherited_environment().items() if name != "RAY_AUTH_TOKEN"}
        path = [str(PROJECT), *filter(None, [inherited.get("PYTHONPATH")])]
        return {
            **inherited,
            **self._variables,
            "PYTHONPATH": os.pathsep.join(path),
            # Ray takes the machine's address even where it is told 127.0.0.1, and then listens for everybody. This is
            # its switch for clusters of one machine, whatever its name says (ray-project/ray#18730).
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Ray would go on for up to 30 s after SIGTERM; the applications have been drained before.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_file),
            # HAProxy in front, ten times the requests of Serve's own proxy. Its files and ports are fixed by default:
            # set apart, so that several stacks fit on a machine.
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).parent / "dreamforge-haproxy"),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            # Seconds that a replaced HAProxy has for the requests it still holds: longer than any but a stream takes.
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "65",
            # Seconds that a replica goes on listening for requests that HAProxy may still send it; 30 by default.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        }


def ray_folder(data_dir: Path) -> Path:
    """Where the Ray of this data folder keeps sockets and sessions.

    Short, because of the sockets: a socket's path has 107 bytes at most.
    """
    digest = hashlib.sha256(f"{os.getuid()} {data_dir}".encode()).hexdigest()[:8]
    return Path("/tmp") / f"df-{digest}"  # noqa: S108 - whoever uses it checks its owner and mode


def authorization(token: str) -> dict[str, str]:
    """The header that Ray's dashboard asks for."""
    return {"Authorization": f"Bearer {token}"}
