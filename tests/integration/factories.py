"""Jobs and models for tests that do not care about the rest."""

import uuid
from typing import Any

from sqlalchemy import Engine
from uuid6 import uuid7

from dreamforge.jobs.job import JobType, Lane, Priority
from dreamforge.jobs.plan import plan
from dreamforge.models.descriptor import SizeRange, sdxl_schema
from dreamforge.models.parameters import resolve_parameters
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.jobs import NewJob
from dreamforge.store.models import ModelRegistry, NewModel, NewModelFile

SCHEMA = sdxl_schema(size=SizeRange(least=64, most=512, default=64), default_steps=2)


def a_model(engine: Engine, **changes: Any) -> NewModel:
    """Register a model."""
    values: dict[str, Any] = {
        "id": uuid7(),
        "name": f"model-{uuid.uuid4().hex[:8]}",
        "kind": "sdxl",
        "version": "1",
        "checkpoint_hash": "ab" * 32,
        "source_uri": "builtin:test",
        "local_path": "/nowhere",
        "parameters_schema": SCHEMA,
        "capabilities": ("generate",),
        "metadata": {},
        "files": (NewModelFile(path="model_index.json", size=2, sha256="cd" * 32),),
    }
    model = NewModel(**{**values, **changes})
    ModelRegistry(engine=engine).register(model)
    return model


def a_job(model: NewModel, *, count: int = 1, priority: Priority = Priority.NORMAL, **params: Any) -> NewJob:
    """A job that can be submitted."""
    steps = plan(JobType.GENERATE, count=count)
    return NewJob(
        id=uuid7(),
        type=JobType.GENERATE,
        priority=priority,
        model_id=model.id,
        count=count,
        params=resolve_parameters({"prompt": "a lighthouse", **params}, SCHEMA),
        options={},
        metadata={},
        request_id="test",
        steps=steps,
        step_ids=tuple(uuid7() for _ in steps),
    )


def claim(engine: Engine, *, lease_seconds: float = 30.0) -> Claim | None:
    """Claim the best due step."""
    return ClaimStore(engine=engine).claim(lane=Lane.GPU, lease_token=uuid.uuid4(), lease_seconds=lease_seconds)
