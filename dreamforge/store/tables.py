"""The tables. Migrations in ``migrations/`` build the same, and a test compares the two.

Times are ``timestamptz`` and set by the database's clock. Ids are UUIDv7 made by the caller.
"""

import uuid
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dreamforge.jobs.job import ItemStatus, JobStatus, JobType, Lane, Priority, StepStatus

Json = dict[str, Any]


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        Json: JSONB,
        str: Text,
        uuid.UUID: Uuid,
        float: Double,
        list[str]: ARRAY(Text),
    }

    schema_version: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"), sort_order=900)


# To the letter as Postgres tells it: Alembic compares the texts.
_PRIORITY_RANK = """(
CASE priority
    WHEN 'high'::text THEN 0
    WHEN 'normal'::text THEN 1
    ELSE 2
END)"""


def _one_of(
    column: str, values: type[JobStatus | JobType | Priority | StepStatus | ItemStatus | Lane]
) -> CheckConstraint:
    allowed = ", ".join(f"'{value.value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


class JobRow(Table):
    """What a client asked for, and how far it has come."""

    __tablename__ = "jobs"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    type: Mapped[str]
    status: Mapped[str]
    priority: Mapped[str]
    model_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id", ondelete="SET NULL"))
    count: Mapped[int]
    params_json: Mapped[Json]
    options_json: Mapped[Json]
    metadata_json: Mapped[Json]
    user_id: Mapped[str] = mapped_column(server_default="default")
    request_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    error_json: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True))
    event_seq: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    progress: Mapped[float] = mapped_column(server_default=text("0"))
    items_done: Mapped[int] = mapped_column(server_default=text("0"))
    idempotency_key_hash: Mapped[str | None]
    request_fingerprint: Mapped[str | None]

    __table_args__ = (
        _one_of("type", JobType),
        _one_of("status", JobStatus),
        _one_of("priority", Priority),
        CheckConstraint("count BETWEEN 1 AND 100", name="count"),
        CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
        UniqueConstraint("user_id", "idempotency_key_hash"),
        Index(None, "status", "created_at"),
        Index("ix_jobs_user_id_created_at_id", "user_id", text("created_at DESC"), "id"),
        Index(
            "ix_jobs_dead_letters",
            "user_id",
            text("created_at DESC"),
            "id",
            postgresql_where=text("(error_json ->> 'code') IN ('attempts_exhausted', 'poison')"),
        ),
        Index("ix_jobs_model_id_created_at_id", "model_id", text("created_at DESC"), "id"),
        Index(None, "updated_at"),
        # In the order in which due steps are claimed.
        Index(
            "ix_jobs_claim_order",
            text(_PRIORITY_RANK),
            "created_at",
            "id",
            postgresql_where=text("status IN ('queued', 'running')"),
        ),
    )


class StepRow(Table):
    """One step of a job, its lease and its budgets."""

    __tablename__ = "steps"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str]
    position: Mapped[int]
    lane: Mapped[str]
    status: Mapped[str]
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    lease_token: Mapped[uuid.UUID | None]
    lease_expires_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    crashes: Mapped[int] = mapped_column(server_default=text("0"))
    rescues: Mapped[int] = mapped_column(server_default=text("0"))
    next_attempt_at: Mapped[datetime | None]
    last_write: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The highest number of the attempt's writes that were made."""
    cancel_seen_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    metadata_json: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    outcome_json: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True))
    error_json: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True))

    __table_args__ = (
        _one_of("status", StepStatus),
        _one_of("lane", Lane),
        UniqueConstraint("job_id", "position"),
        Index(None, "status", "next_attempt_at"),
        Index(None, "lease_expires_at", postgresql_where=text("status = 'running'")),
    )


class ItemRow(Table):
    """One image of a step. Resume reads it: an item that is done is never made again, one that began keeps its seed."""

    __tablename__ = "items"

    step_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("steps.id", ondelete="CASCADE"), primary_key=True)
    item_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(server_default=ItemStatus.PENDING.value)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    progress: Mapped[float] = mapped_column(server_default=text("0"))
    stage: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (_one_of("status", ItemStatus),)


class EventRow(Table):
    """One line of a job's history. ``seq`` is dense per job."""

    __tablename__ = "events"

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    step_id: Mapped[uuid.UUID | None]
    attempt: Mapped[int | None]
    ts: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    code: Mapped[str]
    level: Mapped[str]
    payload_json: Mapped[Json]
    job_progress: Mapped[Json]
    """The job's progress after the event: fraction, items_done, items_total."""


class ArtifactRow(Table):
    """A finished image. It exists when this row exists."""

    __tablename__ = "artifacts"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("steps.id", ondelete="CASCADE"))
    item_index: Mapped[int]
    attempt: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    format: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    s3_key: Mapped[str] = mapped_column(unique=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    checksum: Mapped[str]
    """sha256 of the file, lower-case hex."""
    metadata_json: Mapped[Json]
    expires_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("step_id", "item_index"),
        Index(None, "job_id", "item_index"),
    )


class ModelRow(Table):
    """A model the service knows."""

    __tablename__ = "models"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    version: Mapped[str]
    checkpoint_hash: Mapped[str | None]
    source_uri: Mapped[str]
    local_path: Mapped[str | None]
    installed: Mapped[bool] = mapped_column(server_default=text("false"))
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    is_default: Mapped[bool] = mapped_column(server_default=text("false"))
    parameters_schema: Mapped[Json]
    capabilities: Mapped[list[str]]
    metadata_json: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    size_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("name", "version"),
        Index("uq_models_is_default", "is_default", unique=True, postgresql_where=text("is_default")),
    )


class ModelFileRow(Table):
    """One file of a model; ``path`` is relative to the model's folder."""

    __tablename__ = "model_files"

    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]


class ModelNodeRow(Table):
    """A node that holds a model, verified.

    ``place`` names the folder on it that models are kept in, whatever Ray calls the node this time; ``node`` is an
    address, which several may share, ``node_id`` Ray's name at the last use.
    """

    __tablename__ = "model_nodes"

    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    node: Mapped[str]
    node_id: Mapped[str | None]
    verified_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DownloadRow(Table):
    """The lease on one file that is being downloaded into a folder, ``place``, which several nodes may share."""

    __tablename__ = "downloads"

    place: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    lease_token: Mapped[uuid.UUID]
    lease_expires_at: Mapped[datetime]
    size: Mapped[int | None] = mapped_column(BigInteger)
    bytes_done: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class HeartbeatRow(Table):
    """Something that is alive: an API replica, a dispatcher, a GPU node; and a GPU, by the last step that used it."""

    __tablename__ = "heartbeats"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    node: Mapped[str]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    info_json: Mapped[Json] = mapped_column(server_default=text("'{}'"))

    __table_args__ = (
        CheckConstraint("kind IN ('api', 'dispatcher', 'gpu', 'node')", name="kind"),
        Index(None, "kind", "seen_at"),
    )


class ApiKeyRow(Table):
    """A caller's key; only its hash is stored."""

    __tablename__ = "api_keys"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    limits: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
