"""`cluster.yaml` and `deployments/node.env`: what Ray and the settings make of them."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from dreamforge.settings import Settings

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)
VARIABLES = dict(re.findall(r"(?m)^([A-Z0-9_]+)=(.*)$", (ROOT / "deployments" / "node.env").read_text()))


def _variant(title: str) -> dict[str, Any]:
    """The configuration with one of its commented parts in use."""
    ((_, body),) = re.findall(rf"(?ms)^# --- {title}(.*?)\n#\n(.*?)(?=^$|\Z)", TEXT)
    part = yaml.safe_load(re.sub(r"(?m)^# ?", "", body))
    config = {**CONFIG, **part}
    if "available_node_types" in part:
        del config["min_workers"]
    return config


@pytest.mark.parametrize(
    "config", [CONFIG, _variant("In a cloud"), _variant("In containers")], ids=["local", "cloud", "containers"]
)
def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    workers = [types[name] for name in types if name != prepared["head_node_type"]] or list(types.values())
    assert workers[0]["min_workers"] < workers[0]["max_workers"] <= prepared["max_workers"]


def test_a_field_that_ray_does_not_know_is_refused() -> None:
    with pytest.raises(Exception, match="head_start_commands"):
        validate_config(prepare_config({**CONFIG, "head_start_commands": []}))


def _start(kind: str) -> tuple[str, dict[str, str]]:
    """The command that starts Ray, and its options by name."""
    (command,) = [command for command in CONFIG[f"{kind}_start_ray_commands"] if "ray start" in command]
    words = shlex.split(command.partition("ray start")[2])
    return command, {name: value for name, _, value in (word.removeprefix("--").partition("=") for word in words)}


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_node_starts_with_the_environment_and_a_small_store(kind: str) -> None:
    command, options = _start(kind)
    assert command.index("set -a; . ~/dreamforge.env; set +a") < command.index("ray start")
    assert int(options["object-store-memory"]) <= 256 * 1024 * 1024
    assert "disable-usage-stats" in options
    assert {"~/dreamforge.env", "~/.ray/auth_token"} <= set(CONFIG["file_mounts"])
    assert any("ray stop" in before for before in CONFIG[f"{kind}_start_ray_commands"])


def test_the_head_has_no_gpu_and_leaves_redis_its_port() -> None:
    _, head = _start("head")
    _, worker = _start("worker")
    assert head["num-gpus"] == "0"
    assert head["dashboard-host"] == "127.0.0.1"
    assert head["port"] != "6379"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert "num-gpus" not in worker, "Ray counts them"
    assert head["autoscaling-config"] == "~/ray_bootstrap_config.yaml"


def test_containers_have_an_init() -> None:
    docker = _variant("In containers")["docker"]
    assert "--init" in docker["run_options"]
    assert "--gpus all" in docker["worker_run_options"]


def test_every_command_is_one_that_a_shell_can_read() -> None:
    commands = [command for name, value in CONFIG.items() if name.endswith("_commands") for command in value]
    assert len(commands) > 6
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_no_secret_is_in_it() -> None:
    assert not re.search(r"DREAMFORGE_|RAY_AUTH|AWS_|://[^/\s]*:[^/\s]*@", TEXT)


def test_the_environment_asks_for_a_token_and_names_only_settings_that_exist() -> None:
    assert VARIABLES["RAY_AUTH_MODE"] == "token"
    named = {name.removeprefix("DREAMFORGE_").lower() for name in VARIABLES if name.startswith("DREAMFORGE_")}
    assert named <= set(Settings.model_fields)
    assert {"database_url", "redis_url", "s3_endpoint", "s3_access_key", "s3_secret_key"} <= named


def test_a_shell_reads_the_environment_and_settings_accept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read = "set -a; . deployments/node.env; set +a; env -0"
    output = subprocess.run(["bash", "-c", read], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name, _, value in (line.partition("=") for line in output.split("\0")):
        if name in VARIABLES:
            monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.s3_endpoint == "http://s3.example.org:9000"
    assert settings.models_root == Path("/var/lib/dreamforge/models")
