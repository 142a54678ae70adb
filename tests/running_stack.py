"""`dreamforge up` in a process of its own, as a user has it in a terminal."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

import psutil

from dreamforge.embedded.ports import free_port
from dreamforge.embedded.ray_head import authorization, ray_folder
from dreamforge.embedded.serve import load_config
from tests.service import Service, wait_for
from tests.web import web

__all__ = ["DREAMFORGE", "RunningStack", "command_of", "lives", "wait_for"]

READY_SECONDS = 150.0
DREAMFORGE = (sys.executable, "-m", "dreamforge.cli.main")


class RunningStack(Service):
    """One stack over one data folder; it can be started again after it has stopped.

    Where ``variables`` do not say otherwise it draws no self-check, and shares the built-in model's files.
    """

    models_dir: ClassVar[Path | None] = None
    """Where the built-in model is made once for all; None: by each stack for itself."""

    def __init__(self, *, data_dir: Path, **variables: str) -> None:
        self.data_dir = data_dir
        self.ports = {
            name: free_port()
            for name in ("PORT", "POSTGRES_PORT", "REDIS_PORT", "S3_PORT", "RAY_PORT", "DASHBOARD_PORT")
        }
        self.base_url = f"http://127.0.0.1:{self.ports['PORT']}"
        self.ray_folder = ray_folder(data_dir)
        self.variables = variables
        self.output = data_dir / "up.out"

    @property
    def environment(self) -> dict[str, str]:
        """What its commands find in their environment."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DREAMFORGE_", "RAY_"))}
        return {
            **inherited,
            **{f"DREAMFORGE_{name}": str(port) for name, port in self.ports.items()},
            "DREAMFORGE_DATA_DIR": str(self.data_dir),
            "DREAMFORGE_GPUS": "1",
            "DREAMFORGE_SELF_CHECK": "false",
            **({"DREAMFORGE_MODELS_DIR": str(self.models_dir)} if self.models_dir else {}),
            **self.variables,
        }

    def start(self, *, within: Sequence[str] = ()) -> None:
        """Start it; see ``wait_until_ready``. ``within`` is a command that runs another one, as `unshare` does."""
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*within, *DREAMFORGE, "up"],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def command(self, *arguments: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `dreamforge …` over its data folder to the end."""
        return subprocess.run(
            [*DREAMFORGE, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `dreamforge …` over its data folder, with its output in a pipe."""
        return subprocess.Popen([*DREAMFORGE, *arguments], env=self.environment, stdout=subprocess.PIPE, text=True)

    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def wait_until_ready(self) -> None:
        """Return once it says that it is ready."""

        def is_ready() -> bool:
            assert self.process.poll() is None, f"it ended:\n{self.said()}"
            return "Dream Forge is ready" in self.said()

        wait_for(is_ready, seconds=READY_SECONDS, what=f"readiness (see {self.output})")

    @contextlib.contextmanager
    def ready(self) -> Generator[Self]:
        """A block in which it runs, from its readiness on."""
        self.start()
        try:
            self.wait_until_ready()
            yield self
        finally:
            self.kill()

    def family(self) -> list[psutil.Process]:
        """It and every process below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of one deployment: `api:Api` or `dispatcher:Dispatcher`."""
        return [process for process in self.family() if f"ServeReplica:{deployment}" in command_of(process)]

    def listens(self) -> set[tuple[str, int]]:
        """Address and port of every TCP socket that one of them listens on."""
        heard: set[tuple[str, int]] = set()
        for process in self.family():
            # Runners and workers come and go.
            with contextlib.suppress(psutil.NoSuchProcess):
                heard |= {
                    (connection.laddr.ip, connection.laddr.port)
                    for connection in process.net_connections("tcp")
                    if connection.status == psutil.CONN_LISTEN
                }
        return heard

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, as a terminal or an init does."""
        self.process.send_signal(number)

    def wait_for_end(self, *, seconds: float = 20.0) -> int:
        """The exit code."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Kill it and everything below it, whatever state it is in, and remove what Ray keeps outside its folder.

        How it ends in good order is tested where it is promised; it would take ten seconds each time.
        """
        if self.process.poll() is None:
            up = psutil.Process(self.process.pid)
            # It adopts the orphans, and starts nothing again.
            up.suspend()
            _quit_postgres(up)
            while left := [process for process in up.children(recursive=True) if lives(process)]:
                for process in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(left, timeout=0.2)
            up.kill()
            self.process.wait()
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    @property
    def database_url(self) -> str:
        """Its embedded PostgreSQL's."""
        password = (self.data_dir / "secrets" / "postgres_password").read_text().strip()
        return f"postgresql://dreamforge:{quote(password)}@127.0.0.1:{self.ports['POSTGRES_PORT']}/dreamforge"

    def deploy_again(self, **changes: dict[str, Any]) -> None:
        """What `serve deploy` does, with other arguments for some applications."""
        config = load_config(host="127.0.0.1", port=self.ports["PORT"])
        for application in config["applications"]:
            application["args"] |= changes.get(application["name"], {})
        token = (self.data_dir / "secrets" / "ray_token").read_text().strip()
        url = f"{self.state()['dashboard']}/api/serve/applications/"
        web.put(url, json=config, headers=authorization(token), timeout=60).raise_for_status()

    def state(self) -> dict[str, Any]:
        """What it wrote about itself."""
        return json.loads((self.data_dir / "stack.json").read_text())


def _quit_postgres(up: psutil.Process) -> None:
    """Have PostgreSQL give back its shared memory, which outlives a kill."""
    servers: list[psutil.Process] = []
    for child in up.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "postgres":
                child.send_signal(signal.SIGQUIT)
                servers.append(child)
    # One that takes longer is killed with the rest.
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not any(lives(server) for server in servers), seconds=3)


def command_of(process: psutil.Process) -> str:
    """Its command line; nothing once it has gone, as workers do at any time."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def lives(process: psutil.Process) -> bool:
    """False once it has ended, collected or not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
