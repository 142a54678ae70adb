"""Whoever may speak to Ray may run code: nobody may without the token, and everything works with it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import yaml

from dreamforge.embedded.serve import load_config
from tests.running_stack import RunningStack
from tests.service import wait_for
from tests.web import web

pytestmark = pytest.mark.timeout(300)

REDIS_PORT = 6379
DRIVER = "import ray; ray.init(address='{gcs}', log_to_driver=False); print('GPUs:', ray.cluster_resources()['GPU'])"
COMMANDS = {
    "serve status": "RUNNING",
    "serve deploy {config}": "Sent deploy request successfully",
    "ray status": "GPU",
    "ray list nodes": "ALIVE",
    "ray job submit -- echo it ran": "it ran",
    "python -c {driver}": "GPUs: 1.0",
}
"""What is typed, and what it says when it works."""


@pytest.fixture(scope="module")
def token_file(stack: RunningStack) -> Path:
    return stack.data_dir / "secrets" / "ray_token"


def _environment(stack: RunningStack, home: Path, variables: Mapping[str, str]) -> dict[str, str]:
    return {
        # Ray looks for a token in the home folder too.
        "HOME": str(home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        # As the head itself has it: otherwise Ray takes the machine's address where 127.0.0.1 is meant.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": _gcs(stack),
        "RAY_DASHBOARD_ADDRESS": stack.state()["dashboard"],
        "RAY_API_SERVER_ADDRESS": stack.state()["dashboard"],
        **variables,
    }


def _gcs(stack: RunningStack) -> str:
    return f"127.0.0.1:{stack.ports['RAY_PORT']}"


def _typed(stack: RunningStack, home: Path, **variables: str) -> dict[str, tuple[int, str]]:
    """Exit code and output of every command, all of them typed at once."""
    config = home / "serve_config.yaml"
    config.write_text(yaml.safe_dump(load_config(host="127.0.0.1", port=stack.ports["PORT"])))
    names = {"{config}": str(config), "{driver}": f'"{DRIVER.format(gcs=_gcs(stack))}"'}
    running: dict[str, subprocess.Popen[str]] = {}
    for command in COMMANDS:
        typed = command
        for name, value in names.items():
            typed = typed.replace(name, value)
        running[command] = subprocess.Popen(
            ["bash", "-c", f"exec timeout 120 {typed}"],
            env=_environment(stack, home, variables),
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    said = {command: process.communicate()[0] for command, process in running.items()}
    return {command: (process.returncode, said[command]) for command, process in running.items()}


def test_with_the_token_every_tool_works(stack: RunningStack, token_file: Path, tmp_path: Path) -> None:
    typed = _typed(stack, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token_file))
    for command, (code, said) in typed.items():
        assert code == 0, f"{command}: {said}"
        assert COMMANDS[command] in said, f"{command}: {said}"
    assert stack.get("/readyz").json()["status"] == "ok"


@pytest.mark.parametrize(
    "variables",
    [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-wrong-one"}],
    ids=["no token", "a wrong token"],
)
def test_without_the_token_every_tool_is_refused(
    stack: RunningStack, tmp_path: Path, variables: dict[str, str]
) -> None:
    for command, (code, said) in _typed(stack, tmp_path, **variables).items():
        assert code not in {0, 124}, f"{command}: {said}"
        assert COMMANDS[command] not in said
        assert "uthenticat" in said, f"{command} was refused for another reason: {said}"


def test_no_command_runs_through_the_jobs_api_without_the_token(
    stack: RunningStack, token_file: Path, tmp_path: Path
) -> None:
    url = f"{stack.state()['dashboard']}/api/jobs/"
    token = token_file.read_text().strip()
    without: dict[str, dict[str, str]] = {
        "nothing": {},
        "wrong": {"Authorization": "Bearer a-wrong-one"},
        "no scheme": {"Authorization": token},
        "header": {"X-Ray-Authorization": "Bearer a-wrong-one"},
        "cookie": {"Cookie": "ray-authentication-token=a-wrong-one"},
    }
    for name, headers in without.items():
        answer = web.post(url, json={"entrypoint": f"touch '{tmp_path / name}'"}, headers=headers, timeout=20)
        assert answer.status_code in {401, 403}, name
    headers = {"Authorization": f"Bearer {token}"}
    answer = web.post(url, json={"entrypoint": f"touch {tmp_path / 'with'}"}, headers=headers, timeout=20)
    assert answer.status_code == 200
    wait_for((tmp_path / "with").exists, what="the command that was allowed")
    assert [path.name for path in tmp_path.iterdir()] == ["with"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/version"),
        ("GET", "/api/cluster_status"),
        ("GET", "/api/jobs/"),
        ("GET", "/api/v0/nodes"),
        ("GET", "/api/v0/tasks"),
        ("GET", "/api/v0/logs?node_id=x"),
        ("GET", "/api/serve/applications/"),
        ("PUT", "/api/serve/applications/"),
        ("DELETE", "/api/serve/applications/"),
        ("GET", "/nodes?view=summary"),
        ("GET", "/worker/traceback?pid=1"),
    ],
)
def test_the_dashboard_tells_and_does_nothing_without_the_token(stack: RunningStack, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer a-wrong-one"}):
        answer = web.request(method, f"{stack.state()['dashboard']}{path}", headers=headers, json={}, timeout=20)
        assert answer.status_code in {401, 403}, answer.text


def test_a_page_of_another_site_cannot_use_a_browser_s_login(stack: RunningStack, token_file: Path) -> None:
    headers = {
        "Cookie": f"ray-authentication-token={token_file.read_text().strip()}",
        "Origin": "https://evil.example",
        "Sec-Fetch-Site": "cross-site",
        "User-Agent": "Mozilla/5.0",
    }
    answer = web.post(
        f"{stack.state()['dashboard']}/api/jobs/", json={"entrypoint": "true"}, headers=headers, timeout=20
    )
    assert answer.status_code in {401, 403, 405}


def test_the_gcs_and_the_dashboard_listen_on_loopback_and_not_on_redis_port(stack: RunningStack) -> None:
    heard = {(ip.removeprefix("::ffff:"), port) for ip, port in stack.listens()}
    for name in ("RAY_PORT", "DASHBOARD_PORT"):
        assert {ip for ip, port in heard if port == stack.ports[name]} == {"127.0.0.1"}, name
    assert REDIS_PORT not in {port for _, port in heard}


def test_every_process_of_ray_asks_for_a_token_that_only_its_owner_can_read(
    stack: RunningStack, token_file: Path
) -> None:
    assert token_file.stat().st_mode & 0o077 == 0
    token = token_file.read_text().strip()
    seen: set[str] = set()
    for process in stack.family():
        try:
            name, command, environment = process.name(), " ".join(process.cmdline()), process.environ()
        except psutil.NoSuchProcess:
            continue
        assert token not in command
        # Ray's own workers write their names over their environment.
        if "/ray/core/" in command or "/ray/dashboard/" in command:
            seen.add(name)
            assert environment["RAY_AUTH_MODE"] == "token", command
            assert environment["RAY_AUTH_TOKEN_PATH"] == str(token_file), command
            assert token_file.stat().st_mtime <= process.create_time(), "it was made before"
    assert {"gcs_server", "raylet"} <= seen
