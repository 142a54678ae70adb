"""The order of things: what starts after what, and what stops before what.

What speaks to the servers is imported once they are started: it takes them as long to come up.
"""

import os
import time
from pathlib import Path
from typing import NoReturn

from dreamforge.embedded.api_address import api_address
from dreamforge.embedded.interrupts import Interrupts
from dreamforge.embedded.layout import Layout
from dreamforge.embedded.orphans import end_orphans
from dreamforge.embedded.part import TITLES, Part
from dreamforge.embedded.ports import require_free
from dreamforge.embedded.report import Report
from dreamforge.embedded.serve import ServeApplications, load_config
from dreamforge.embedded.space import require_space, require_space_for_ray
from dreamforge.embedded.state import DataDirLock, PartState, StackState, forget_state, left_behind, write_state
from dreamforge.embedded.trouble import StackError
from dreamforge.embedded.watch import Watch
from dreamforge.settings import Settings
from dreamforge.worker.strays import adopt_orphans

_DRAIN_MARGIN = 2.0
_OUTLAST_SECONDS = 30.0
_POLL_SECONDS = 0.1


class Stack:
    """The embedded parts of ``layout`` and the service on top of them."""

    def __init__(
        self, *, settings: Settings, layout: Layout, lock: DataDirLock, interrupts: Interrupts, report: Report
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._lock = lock
        self._interrupts = interrupts
        self._report = report
        self._parts: dict[str, Part] = layout.parts()
        self._versions: dict[str, str] = {}
        self._started_at = time.time()
        self._ready_at: float | None = None
        self._applications: ServeApplications | None = None
        self.base_url = settings.service_url
        """The API's address, for certain once the stack starts."""

    def start(self) -> str | None:
        """Start everything. The notice of the built-in model, when that is what jobs will find."""
        adopt_orphans()
        require_space(self._layout.data_dir)
        if self._layout.ray is not None:
            require_space_for_ray(self._layout.ray.folder.parent)
        self._outlast_killed_run()
        self._require_ports()
        if any(
            (
                self._settings.database_url,
                self._settings.redis_url,
                self._settings.s3_endpoint,
                self._settings.s3_public_endpoint,
                self._settings.ray_address,
            )
        ):
            from dreamforge.embedded.external import require_external  # noqa: PLC0415 - where there are any

            with self._report.part("Servers of yours", "asking whether they let us in"):
                require_external(self._settings, self._layout.blobs, ray_token=self._layout.ray_token)
            self._require_servers_of_the_cluster()
        self.base_url = api_address(self._settings)
        self._start_parts()
        notice = self._prepare_service()
        self._wait_ready("ray")
        self._applications = self._connect_applications()
        with self._report.part("Service", "deploying serve_config.yaml"):
            self._deploy()
        return notice

    def self_check(self) -> Path | None:
        """Wait for the API and draw one image. Where it is; None when it is not wanted, or would wait behind others."""
        from dreamforge.embedded.self_check import SelfCheck  # noqa: PLC0415 - see above

        target = self._layout.data_dir / "self-check.png"
        check = SelfCheck(base_url=self.base_url, alive=self.require_alive)
        try:
            with self._report.part("API", "waiting for /readyz to say ok"):
                check.wait_until_ready()
            if not self._settings.self_check:
                return None
            ahead = self._jobs_ahead()
            with self._report.part("Self-check", "drawing one image") as remarks:
                if ahead:
                    remarks.append(f"left out: {ahead} {'job goes' if ahead == 1 else 'jobs go'} first")
                    return None
                check.draw(target)
        finally:
            check.close()
        return target

    def note_ready(self) -> None:
        """Let other commands know that the stack is ready, before a person does."""
        self._ready_at = time.time()
        self._write_state()

    def watch(self) -> NoReturn:
        """Start again whatever ends, for ever."""
        Watch(parts=self._parts, data_dir=self._layout.data_dir, revive=self._revive, report=self._report).run()

    def require_alive(self) -> None:
        """Raise ``StackError`` when a server has ended."""
        for name, part in self._parts.items():
            if part.process is not None and part.process.ending is not None:
                raise StackError(f"{TITLES[name]} has ended:\n{part.process.log_tail()}")

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
        if self._lock.is_held:
            end_orphans(known=())
            forget_state(self._layout.data_dir)

    def _prepare_service(self) -> str | None:
        from dreamforge.embedded.preparation import prepare_service  # noqa: PLC0415 - see above

        return prepare_service(
            self._settings, database_url=self._layout.database_url, blobs=self._layout.blobs, report=self._report
        )

    def _jobs_ahead(self) -> int:
        from dreamforge.store.claims import ClaimStore  # noqa: PLC0415 - see above
        from dreamforge.store.engine import open_engine  # noqa: PLC0415 - see above

        engine = open_engine(self._layout.database_url, application="dreamforge-up", pool_size=1)
        try:
            return ClaimStore(engine=engine).jobs_ahead()
        finally:
            engine.dispose()

    def _start_parts(self) -> None:
        # Ray takes longest: started first, waited for last.
        for part in reversed(self._parts.values()):
            with self._interrupts.held():
                part.start()
        for name in ("postgres", "valkey", "s3"):
            self._wait_ready(name)

    def _wait_ready(self, name: str) -> None:
        part = self._parts.get(name)
        if part is not None:
            with self._report.part(TITLES[name], "starting") as remarks:
                self._versions[name] = part.wait_ready()
                remarks.append(self._versions[name])
            self._write_state()

    def _revive(self, name: str) -> None:
        part = self._parts[name]
        with self._interrupts.held():
            part.start()
        self._versions[name] = part.wait_ready()
        if name == "ray":
            # What Serve knew went with the head.
            self._deploy()
        self._write_state()

    def _outlast_killed_run(self) -> None:
        """Let the servers of a run that was killed end: they hold its ports and files for a moment."""
        if left_behind(self._layout.data_dir):
            with self._report.part("The run before", "it was killed; waiting for its servers to end"):
                deadline = time.monotonic() + _OUTLAST_SECONDS
                while left_behind(self._layout.data_dir) and time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)

    def _require_servers_of_the_cluster(self) -> None:
        # Its processes have their settings from where Ray was started: ours would be others.
        needed = {
            "DREAMFORGE_DATABASE_URL": self._settings.database_url,
            "DREAMFORGE_REDIS_URL": self._settings.redis_url,
            "DREAMFORGE_S3_ENDPOINT": self._settings.s3_endpoint,
        }
        missing = [name for name, value in needed.items() if not value]
        if self._settings.ray_address and missing:
            raise StackError(
                f"RAY_ADDRESS names a cluster of yours; set {', '.join(missing)} too, as where its Ray was started."
            )

    def _connect_applications(self) -> ServeApplications:
        return ServeApplications(
            dashboard_url=self._layout.dashboard_url, token=self._layout.ray_token, alive=self.require_alive
        )

    def _deploy(self) -> None:
        if self._applications is None:
            raise StackError("Ray was not started.")
        self._applications.deploy(load_config(host=self._settings.host, port=self._settings.port))
        self._applications.wait_until_running()

    def _require_ports(self) -> None:
        settings, layout = self._settings, self._layout
        # On a cluster of the user's own the port may be that of the service deployed before.
        wanted = [(layout.ray is not None, "the API", "DREAMFORGE_PORT", settings.port, settings.host)]
        for part, what, setting, port in (
            (layout.postgres, "PostgreSQL", "DREAMFORGE_POSTGRES_PORT", settings.postgres_port),
            (layout.valkey, "Valkey", "DREAMFORGE_REDIS_PORT", settings.redis_port),
            (layout.object_store, "the S3 server", "DREAMFORGE_S3_PORT", settings.s3_port),
            (layout.ray, "Ray", "DREAMFORGE_RAY_PORT", settings.ray_port),
            (layout.ray, "the Ray dashboard", "DREAMFORGE_DASHBOARD_PORT", settings.dashboard_port),
        ):
            wanted.append((part is not None, what, setting, port, "127.0.0.1"))
        taken: dict[int, str] = {}
        for is_ours, what, setting, port, host in wanted:
            if not is_ours:
                continue
            if port in taken:
                raise StackError(f"{taken[port]} and {setting} are both {port}. Set one of them to another port.")
            taken[port] = setting
            require_free(port, what=what, setting=setting, host=host)

    def _write_state(self) -> None:
        parts = {
            name: PartState(
                title=TITLES[name],
                pid=part.process.pid,
                version=self._versions.get(name),
                address=part.address,
                log=str(part.process.log),
            )
            for name, part in self._parts.items()
            if part.process is not None
        }
        state = StackState(
            pid=os.getpid(),
            started_at=self._started_at,
            ready_at=self._ready_at,
            api=self.base_url,
            dashboard=self._layout.dashboard_url,
            parts=parts,
        )
        write_state(self._layout.data_dir, state)
