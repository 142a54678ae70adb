"""From rows to the shapes that clients see."""

from datetime import UTC, datetime, timedelta

from dreamforge.api.schemas import (
    Artifact,
    Job,
    JobError,
    JobLinks,
    JobProgress,
    JobStep,
    LogLine,
    Model,
    ModelNode,
)
from dreamforge.blobs import Blobs
from dreamforge.jobs.image_format import IMAGE_FORMATS
from dreamforge.store.events import EventRecord
from dreamforge.store.jobs import JobRecord
from dreamforge.store.models import HoldingNode, ModelRecord
from dreamforge.store.tables import ArtifactRow, StepRow


def job_view(record: JobRecord) -> Job:
    """The job as it is now."""
    job = record.job
    return Job(
        id=job.id,
        type=job.type,
        status=job.status,
        model_id=job.model_id,
        count=job.count,
        priority=job.priority,
        params=job.params_json,
        options=job.options_json,
        metadata=job.metadata_json,
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
        progress=JobProgress(
            fraction=round(job.progress, 4),
            items_done=job.items_done,
            items_total=record.items_total,
            stage=record.stage,
            queue_position=record.queue_position,
            eta_seconds=None if record.eta_seconds is None else round(record.eta_seconds, 1),
        ),
        steps=[_step_view(step) for step in record.steps],
        error=JobError(**job.error_json) if job.error_json else None,
        links=_links(f"/v1/jobs/{job.id}"),
    )


def artifact_view(row: ArtifactRow, *, blobs: Blobs, ttl: int) -> Artifact:
    """The artifact, with a fresh presigned URL."""
    # The URL counts from a whole second.
    begin = datetime.now(UTC).replace(microsecond=0)
    url = blobs.presign(
        row.s3_key,
        ttl=ttl,
        content_type=IMAGE_FORMATS[row.format].content_type,
        filename=artifact_filename(row),
        begin=begin,
    )
    return Artifact(
        id=row.id,
        job_id=row.job_id,
        step_id=row.step_id,
        item_index=row.item_index,
        format=row.format,
        width=row.width,
        height=row.height,
        seed=row.seed,
        size_bytes=row.size_bytes,
        checksum=f"sha256:{row.checksum}",
        created_at=row.created_at,
        expires_at=row.expires_at,
        url=url,
        url_expires_at=begin + timedelta(seconds=ttl),
        metadata=row.metadata_json,
    )


def artifact_filename(row: ArtifactRow) -> str:
    """A safe name of our own making: nothing of the caller's is in it."""
    return f"{row.job_id}_{row.item_index}.{IMAGE_FORMATS[row.format].extension}"


def model_view(record: ModelRecord) -> Model:
    """The model's descriptor."""
    model = record.model
    return Model(
        id=model.id,
        name=model.name,
        kind=model.kind,
        version=model.version,
        installed=model.installed,
        enabled=model.enabled,
        default=model.is_default,
        checkpoint_hash=model.checkpoint_hash,
        source_uri=model.source_uri,
        capabilities=model.capabilities,
        parameters_schema=model.parameters_schema,
        size_bytes=model.size_bytes,
        nodes=[_node_view(node) for node in record.nodes],
        created_at=model.created_at,
        updated_at=model.updated_at,
        metadata=model.metadata_json,
    )


def _node_view(held: HoldingNode) -> ModelNode:
    row = held.row
    return ModelNode(
        node=row.node,
        node_id=row.node_id,
        verified_at=row.verified_at,
        last_used_at=row.last_used_at,
        online=held.is_online,
    )


def log_line(event: EventRecord) -> LogLine:
    """The event as a line of the log."""
    return LogLine(
        seq=event.seq,
        ts=event.ts,
        code=event.code,
        job_id=event.job_id,
        step_id=event.step_id,
        attempt=event.attempt,
        level=event.level,
        payload=event.payload,
    )


def _step_view(step: StepRow) -> JobStep:
    return JobStep(
        id=step.id,
        name=step.name,
        status=step.status,
        attempt=step.attempt,
        started_at=step.started_at,
        finished_at=step.finished_at,
        error=JobError(**step.error_json) if step.error_json else None,
    )


def _links(job: str) -> JobLinks:
    return JobLinks(
        self=job,
        artifacts=f"{job}/artifacts",
        logs=f"{job}/logs",
        progress=f"{job}/progress",
        stream=f"{job}/progress/stream",
        cancel=f"{job}/cancel",
    )
