"""The order of things: what starts after what, and what stops before what."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO, Protocol

from dreamforge.blobs import Blobs
from dreamforge.embedded import builtin
from dreamforge.embedded.interrupts import Interrupts
from dreamforge.embedded.layout import Layout
from dreamforge.embedded.ports import require_free
from dreamforge.embedded.process import ServerProcess
from dreamforge.embedded.report import Report
from dreamforge.embedded.self_check import SelfCheck
from dreamforge.embedded.serve import ServeApplications, load_config
from dreamforge.embedded.trouble import StackError
from dreamforge.settings import Settings
from dreamforge.store import migrate
from dreamforge.store.claims import ClaimStore
from dreamforge.store.engine import open_engine

_DRAIN_MARGIN = 2.0
_WATCH_SECONDS = 0.5
STATE_FILE = "stack.json"


class Part(Protocol):
    """A server of the stack."""

    @property
    def process(self) -> ServerProcess | None:
        """Its process once it was started."""
        ...

    def start(self) -> None:
        """Start it."""
        ...

    def wait_ready(self) -> str:
        """Its version once it answers."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


class Stack:
    """The embedded parts of ``layout`` and the service on top of them."""

    def __init__(self, *, settings: Settings, layout: Layout, interrupts: Interrupts, report: Report) -> None:
        self._settings = settings
        self._layout = layout
        self._interrupts = interrupts
        self._report = report
        self._lock: IO[str] | None = None
        self._applications: ServeApplications | None = None
        parts: dict[str, Part | None] = {
            "PostgreSQL": layout.postgres,
            "Valkey": layout.valkey,
            "S3": layout.object_store,
            "Ray": layout.ray,
        }
        self._parts = {name: part for name, part in parts.items() if part is not None}

    @property
    def base_url(self) -> str:
        """The API's address."""
        return f"http://{self._settings.host}:{self._settings.port}"

    def start(self) -> str | None:
        """Start everything. The notice of the built-in model, when that is what jobs will find."""
        self._lock_data_dir()
        self._require_ports()
        self._start_parts()
        with self._report.part("Schema", "migrating"):
            migrate.upgrade(self._layout.database_url)
        with self._report.part("Bucket", "looking"):
            Blobs(self._layout.blobs).ensure_bucket()
        with self._report.part("Model", "looking; the built-in one is made the first time"):
            notice = builtin.install_if_empty(self._settings, self._layout.database_url)
        self._wait_ready("Ray")
        self._deploy()
        return notice

    def self_check(self) -> Path | None:
        """Draw one image. Where it is; None when jobs of before are still to be done, behind which it would wait."""
        target = self._layout.data_dir / "self-check.png"
        check = SelfCheck(base_url=self.base_url, alive=self.require_alive)
        try:
            with self._report.part("API", "waiting for /readyz to say ok"):
                check.wait_until_ready()
            unfinished = self._unfinished_jobs()
            with self._report.part("Self-check", "drawing one image") as remarks:
                if unfinished:
                    remarks.append(
                        f"left out: {unfinished} unfinished {'job goes' if unfinished == 1 else 'jobs go'} first"
                    )
                    return None
                check.draw(target)
        finally:
            check.close()
        return target

    def watch(self) -> None:
        """Never return: raises ``StackError`` when a server ends."""
        while True:
            self.require_alive()
            time.sleep(_WATCH_SECONDS)

    def require_alive(self) -> None:
        """Raise ``StackError`` when a server has ended."""
        for name, part in self._parts.items():
            if part.process is not None and part.process.exit_code is not None:
                raise StackError(f"{name} has ended:\n{part.process.log_tail()}")

    def stop(self) -> None:
        """Stop what was started: the applications drain, then the servers they need go, in order."""
        if self._applications is not None:
            self._applications.delete(timeout=self._settings.drain_timeout + _DRAIN_MARGIN)
            self._applications.close()
        self.stop_parts()

    def stop_parts(self) -> None:
        """Stop the servers, without waiting for anything in flight."""
        for part in reversed(self._parts.values()):
            part.stop()
        (self._layout.data_dir / STATE_FILE).unlink(missing_ok=True)

    def _unfinished_jobs(self) -> int:
        engine = open_engine(self._layout.database_url, application="dreamforge-up", pool_size=1)
        try:
            return ClaimStore(engine=engine).unfinished_jobs()
        finally:
            engine.dispose()

    def _start_parts(self) -> None:
        # Ray takes longest: started first, waited for last.
        for part in reversed(self._parts.values()):
            with self._interrupts.held():
                part.start()
        for name in ("PostgreSQL", "Valkey", "S3"):
            self._wait_ready(name)
        self._write_state()

    def _wait_ready(self, name: str) -> None:
        part = self._parts.get(name)
        if part is not None:
            with self._report.part(name, "starting") as remarks:
                remarks.append(part.wait_ready())

    def _deploy(self) -> None:
        token = self._layout.ray.token() if self._layout.ray else None
        self._applications = ServeApplications(
            dashboard_url=self._layout.dashboard_url, token=token, alive=self.require_alive
        )
        with self._report.part("Service", "deploying serve_config.yaml"):
            self._applications.deploy(load_config(host=self._settings.host, port=self._settings.port))
            self._applications.wait_until_running()

    def _lock_data_dir(self) -> None:
        self._lock = (self._layout.data_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(
                f"A stack is running over {self._layout.data_dir} already. Set DREAMFORGE_DATA_DIR for another one."
            ) from error

    def _require_ports(self) -> None:
        settings, layout = self._settings, self._layout
        wanted = [(True, "the API", "DREAMFORGE_PORT", settings.port, settings.host)]
        for part, what, setting, port in (
            (layout.postgres, "PostgreSQL", "DREAMFORGE_POSTGRES_PORT", settings.postgres_port),
            (layout.valkey, "Valkey", "DREAMFORGE_REDIS_PORT", settings.redis_port),
            (layout.object_store, "the S3 server", "DREAMFORGE_S3_PORT", settings.s3_port),
            (layout.ray, "Ray", "DREAMFORGE_RAY_PORT", settings.ray_port),
            (layout.ray, "the Ray dashboard", "DREAMFORGE_DASHBOARD_PORT", settings.dashboard_port),
        ):
            wanted.append((part is not None, what, setting, port, "127.0.0.1"))
        for is_ours, what, setting, port, host in wanted:
            if is_ours:
                require_free(port, what=what, setting=setting, host=host)

    def _write_state(self) -> None:
        pids = {name: part.process.pid for name, part in self._parts.items() if part.process is not None}
        state = {
            "pid": os.getpid(),
            "pids": pids,
            "api": self.base_url,
            "dashboard": self._layout.dashboard_url,
            "database_url": self._layout.database_url,
        }
        path = self._layout.data_dir / STATE_FILE
        path.touch(mode=0o600)
        path.write_text(json.dumps(state, indent=2))
