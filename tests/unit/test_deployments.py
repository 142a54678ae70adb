"""What is handed to Ray, as Ray would see it; nothing of it is started."""

import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from deployments import api, dispatcher, download, step
from deployments.dispatcher import DispatcherArguments, DispatcherReplica
from deployments.placement import on_head
from tests.ray_cluster import ROOT

_CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
_APPLICATIONS = {application["name"]: application for application in _CONFIG["applications"]}


def _deployment(name: str) -> Any:
    """The deployment of an application, built as `serve deploy` builds it, by its import path and its arguments."""
    module, _, builder = _APPLICATIONS[name]["import_path"].partition(":")
    build = getattr(import_module(module), builder)
    kind = api.ApiArguments if name == "api" else DispatcherArguments
    return build(kind.model_validate(_APPLICATIONS[name]["args"]))._bound_deployment


def test_the_configuration_builds_two_replicas_of_the_api_that_hold_thousands_of_requests() -> None:
    assert _APPLICATIONS["api"]["route_prefix"] == "/"
    deployment = _deployment("api")
    assert deployment.num_replicas == 2
    assert deployment.max_ongoing_requests >= 1000


def test_the_dispatcher_has_no_route_and_one_replica() -> None:
    assert _APPLICATIONS["dispatcher"]["route_prefix"] is None
    assert _deployment("dispatcher").num_replicas == 1


@pytest.mark.parametrize("name", ["api", "dispatcher"])
def test_replicas_take_no_cpu_from_the_steps(name: str) -> None:
    assert _deployment(name).ray_actor_options["num_cpus"] == 0


def test_serve_waits_for_the_drain() -> None:
    deployment = _deployment("dispatcher")
    arguments = DispatcherArguments.model_validate(_APPLICATIONS["dispatcher"]["args"])
    assert deployment._deployment_config.graceful_shutdown_timeout_s == arguments.graceful_shutdown_timeout_s


def test_a_step_is_a_task_on_one_gpu_whose_process_ends_with_it_and_that_ray_does_not_repeat() -> None:
    options = step.run_step._default_options  # pyright: ignore[reportAttributeAccessIssue] - as Ray keeps them
    assert {name: options[name] for name in ("num_gpus", "num_cpus", "max_calls", "max_retries")} == {
        "num_gpus": 1,
        "num_cpus": 0,
        "max_calls": 1,
        "max_retries": 0,
    }


def test_a_download_is_a_task_on_the_head_that_takes_no_gpu_and_whose_process_ends_with_it() -> None:
    options = download.run_download._default_options  # pyright: ignore[reportAttributeAccessIssue] - as Ray keeps them
    assert {name: options.get(name) for name in ("num_gpus", "num_cpus", "max_calls", "max_retries", "resources")} == {
        "num_gpus": None,
        "num_cpus": 0,
        "max_calls": 1,
        "max_retries": 0,
        "resources": on_head()["resources"],
    }


def test_steps_do_not_load_what_only_downloads_need() -> None:
    program = "import sys, deployments.step, deployments.dispatcher_replica; print('huggingface_hub' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_a_dispatcher_that_has_died_in_part_is_not_healthy() -> None:
    class HalfDead:
        def check(self) -> None:
            raise RuntimeError("dead: slot 1")

    replica: Any = SimpleNamespace(_running=HalfDead())
    with pytest.raises(RuntimeError, match="slot 1"):
        DispatcherReplica.check_health(replica)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_replicas"):
        api.ApiArguments.model_validate({"num_replicas": 0})
    with pytest.raises(ValueError, match="extra"):
        dispatcher.DispatcherArguments.model_validate({"slots": 3})
