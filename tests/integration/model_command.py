"""`dreamforge model …` as a user types it, on the test's database."""

import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from dreamforge.store.models import NewModel
from tests.integration.cli import command
from tests.integration.factories import Jobs, a_job


def run_model(database_url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`dreamforge model …` on this database."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMFORGE_")}
    return subprocess.run(
        command("model", *arguments),
        env={**inherited, "DREAMFORGE_DATABASE_URL": database_url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def done(database_url: str, *arguments: str | Path) -> str:
    """All that a command which ended well has printed."""
    result = run_model(database_url, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def refusal_of(database_url: str, *arguments: str | Path) -> str:
    """What a command that failed has printed, with one sentence."""
    result = run_model(database_url, *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    return result.stderr


def known(client: TestClient, reference: str) -> dict[str, Any]:
    """What the API says of a model."""
    return client.get(f"/v1/models/{reference}").json()


def over(jobs: Jobs, model_id: uuid.UUID) -> None:
    """Have a job tell of the model that is over."""
    model = NewModel(
        id=model_id, name="", kind="", version="", checkpoint_hash=None, source_uri="", local_path="",
        parameters_schema={}, capabilities=(), metadata={}, files=(),
    )  # fmt: skip
    job = a_job(model)
    jobs.submit(job)
    jobs.cancel(job.id)
