"""A Ray cluster on this machine that `dreamforge up` did not start: what `cluster.yaml` and `node.env` say, done here.

Each node has an address of its own on loopback. The commands are those of the two files as they stand; only ports and
folders are set apart, and each command stays in the foreground so that it can be ended with all that it has started.
"""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from dreamforge.embedded.ports import free_port
from dreamforge.embedded.process import Program, ServerProcess
from dreamforge.embedded.ray_head import authorization
from tests.running_stack import command_of
from tests.service import Service, wait_for
from tests.web import web

ROOT = Path(__file__).parent.parent
_HAPROXY_FILES = {
    "CONFIG_FILE_LOC": "haproxy.cfg",
    "SOCKET_PATH": "admin.sock",
    "SERVER_STATE_BASE": ".",
    "SERVER_STATE_FILE": "server-state",
    "METRICS_SOCKET_PATH": "metrics.sock",
}
START_SECONDS = 90.0
_IN_THE_ENVIRONMENT = "cd ~/dreamforge && . .venv/bin/activate && set -a && . ~/dreamforge.env && set +a"


def start_command(kind: str) -> str:
    """The command of ``cluster.yaml`` that starts Ray on a `head` or a `worker`."""
    commands: list[str] = yaml.safe_load((ROOT / "cluster.yaml").read_text())[f"{kind}_start_ray_commands"]
    (command,) = [command for command in commands if "ray start" in command]
    return command


def filled_in(template: str, values: Mapping[str, str]) -> str:
    """``node.env`` with values put in the place of its examples, as an operator does."""
    for name, value in values.items():
        template, found = re.subn(rf"(?m)^{name}=.*$", lambda _, n=name, v=value: f"{n}={shlex.quote(v)}", template)
        assert found == 1, name
    return template


class RayNode:
    """One `ray start`, with everything below it."""

    def __init__(self, *, address: str, command: str, environment: Mapping[str, str], log: Path) -> None:
        self.address = address
        self.id = ""
        self._process = ServerProcess(
            Program(
                name=f"Ray on {address}",
                # Without `exec` it would be the shell's child, and outlive the shell.
                command=["bash", "-c", command.replace("ray start", "exec ray start")],
                log=log,
                environment=environment,
            )
        )

    def wait_until_started(self) -> None:
        """Return once `ray start` says so."""
        log = self._process.log
        self._process.wait_until(lambda: "Ray runtime started" in log.read_text(), timeout=START_SECONDS)

    def family(self) -> list[psutil.Process]:
        """`ray start` and every process below it."""
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def lose(self) -> None:
        """Kill all of it at once, as when a machine loses its power."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.stop(grace=1.0)

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Its runner does not get on in the block, however fast the machine is."""
        wait_for(self._runners, what=f"a runner on {self.address}")
        (runner,) = self._runners()
        runner.suspend()
        try:
            yield
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                runner.resume()

    def _runners(self) -> list[psutil.Process]:
        return [process for process in self.family() if "dreamforge.runners.process" in command_of(process)]


class RayCluster(Service):
    """A head without GPUs, and nodes with one logical GPU each. ``variables`` fill in ``node.env``."""

    def __init__(self, *, variables: Mapping[str, str]) -> None:
        # Short, because of Ray's sockets.
        self.folder = Path(tempfile.mkdtemp(prefix="df-"))
        self.token = secrets.token_hex(32)
        self.nodes: dict[str, RayNode] = {}
        names = ("gcs", "dashboard", "client", "api", "fallback", "metrics", "stats")
        self._ports = {name: free_port() for name in names}
        self._head_address = "127.0.0.2"
        self.gcs_address = f"{self._head_address}:{self._ports['gcs']}"
        self.dashboard_url = f"http://127.0.0.1:{self._ports['dashboard']}"
        self.base_url = f"http://127.0.0.1:{self._ports['api']}"
        self.api_port = self._ports["api"]
        self.home = self.folder / "home"
        self.models_dir = self.folder / "data" / "models"
        self._furnish(variables)

    def _furnish(self, variables: Mapping[str, str]) -> None:
        (self.home / ".ray").mkdir(parents=True)
        # With the newline that `openssl rand -hex` ends it with.
        (self.home / ".ray" / "auth_token").write_text(f"{self.token}\n")
        checkout = self.home / "dreamforge"
        checkout.mkdir()
        for path in ROOT.iterdir():
            (checkout / path.name).symlink_to(Path(sys.prefix) if path.name == ".venv" else path)
        folders = {
            "DREAMFORGE_DATA_DIR": str(self.models_dir.parent),
            "DREAMFORGE_MODELS_DIR": str(self.models_dir),
        }
        template = (ROOT / "deployments" / "node.env").read_text()
        (self.home / "dreamforge.env").write_text(filled_in(template, {**folders, **variables}))

    @property
    def environment(self) -> dict[str, str]:
        """What a user who has logged in to a node has."""
        return {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            # What an operator of a cluster has no need of: several clusters on a machine, and tests that do not wait.
            **{f"RAY_SERVE_HAPROXY_{name}": str(self.folder / file) for name, file in _HAPROXY_FILES.items()},
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self._ports["fallback"]),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self._ports["metrics"]),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self._ports["stats"]),
            "DREAMFORGE_HEARTBEAT_SECONDS": "1",
        }

    def start_head(self) -> None:
        """Start the head; see ``wait_for_node``."""
        command = start_command("head").replace(" --autoscaling-config=~/ray_bootstrap_config.yaml", "")
        options = {
            "port": self._ports["gcs"],
            "dashboard-port": self._ports["dashboard"],
            "ray-client-server-port": self._ports["client"],
        }
        self._start("head", self._head_address, command, options)

    def start_node(self, name: str, **variables: str) -> None:
        """Start a node with one logical GPU; see ``wait_for_node``. ``variables`` are its own, beside ``node.env``."""
        command = start_command("worker").replace("$RAY_HEAD_IP:6380", self.gcs_address)
        own = " ".join(f"{variable}={shlex.quote(value)}" for variable, value in variables.items())
        if own:
            command = command.replace("ray start", f"export {own} && ray start")
        self._start(name, f"127.0.0.{len(self.nodes) + 2}", command, {"num-gpus": 1})

    def _start(self, name: str, address: str, command: str, options: Mapping[str, Any]) -> None:
        own = {
            **options,
            "node-ip-address": address,
            "dashboard-agent-listen-port": free_port(),
            "temp-dir": self.folder / name,
            "num-cpus": 1,
            "min-worker-port": 0,
            "max-worker-port": 0,
        }
        arguments = " ".join(f"--{option}={value}" for option, value in own.items())
        self.nodes[name] = RayNode(
            address=address,
            command=f"{command} --block {arguments}",
            environment=self.environment,
            log=self.folder / f"{name}.log",
        )

    def wait_for_node(self, name: str) -> None:
        """Return once the node is in the cluster."""
        node = self.nodes[name]
        node.wait_until_started()
        wait_for(lambda: node.address in self.addresses(), what=f"{name} in the cluster")
        node.id = self.addresses()[node.address]

    def typed(self, command: str, **variables: str) -> str:
        """The output of a command that is typed on the head, in the environment of ``node.env``."""
        result = subprocess.run(
            self.in_environment(command),
            env={**self.environment, "RAY_DASHBOARD_ADDRESS": self.dashboard_url, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.returncode == 0, f"{command}: {result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        return result.stdout

    @staticmethod
    def in_environment(command: str) -> list[str]:
        """The command in the environment of ``node.env``, to be started with ``environment``."""
        return ["bash", "-c", f"{_IN_THE_ENVIRONMENT} && {command}"]

    def serve_config(self) -> Path:
        """A copy of ``serve_config.yaml`` with a port of the cluster's own."""
        config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        config["http_options"]["port"] = self._ports["api"]
        path = self.folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def ray_nodes(self) -> list[dict[str, Any]]:
        """The nodes as Ray's dashboard lists them, dead ones too."""
        answer = web.get(
            f"{self.dashboard_url}/api/v0/nodes?detail=true", headers=authorization(self.token), timeout=30
        )
        return answer.raise_for_status().json()["data"]["result"]["result"]

    def addresses(self) -> dict[str, str]:
        """Ray's ids of the living nodes, by address."""
        return {node["node_ip"]: node["node_id"] for node in self.ray_nodes() if node["state"] == "ALIVE"}

    def place(self, job: dict[str, Any]) -> str | None:
        """The name of the node on which the job's last attempt has started."""
        started = [event for event in self.events(job) if event["code"] == "step.started"]
        if not started:
            return None
        (name,) = [name for name, node in self.nodes.items() if node.id == started[-1]["payload"]["node_id"]]
        return name

    def stop(self) -> None:
        """End everything and remove its folder."""
        for node in reversed(self.nodes.values()):
            node.lose()
        shutil.rmtree(self.folder, ignore_errors=True)

    def left(self) -> list[str]:
        """Command lines of the processes on this machine that know the cluster's folder."""
        found: list[str] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                known = [*process.cmdline(), *process.environ().values()]
                if any(str(self.folder) in value for value in known):
                    found.append(shlex.join(process.cmdline()))
        return found

    def status(self) -> dict[str, Any]:
        """What `serve status` prints."""
        return yaml.safe_load(self.typed("serve status"))

    def told(self) -> str:
        """The ends of all logs, for when a test fails."""
        return json.dumps({path.name: path.read_text()[-1500:] for path in self.folder.glob("*.log")}, indent=1)
