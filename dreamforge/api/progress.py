"""Progress as clients see it."""

import uuid

from dreamforge.api.schemas import ItemProgress, Progress
from dreamforge.store.progress import ItemState, JobState

_DIGITS = 4


def progress_view(job_id: uuid.UUID, job: JobState) -> Progress:
    """How far the job and each of its images is."""
    return Progress(
        job_id=job_id,
        status=job.status,
        fraction=round(job.fraction, _DIGITS),
        items_done=job.items_done,
        items_total=len(job.items),
        stage=job.stage,
        eta_seconds=eta_seconds(job),
        last_seq=job.last_seq,
        items=[_item_view(item) for item in job.items],
    )


def eta_seconds(_: JobState) -> float | None:
    """Seconds until the job is done; None where nothing is known, which is everywhere so far."""
    return None


def _item_view(item: ItemState) -> ItemProgress:
    return ItemProgress(
        item_index=item.item_index,
        step=item.step,
        status=item.status,
        fraction=round(item.fraction, _DIGITS),
        stage=item.stage,
        seed=item.seed,
        artifact_id=item.artifact_id,
    )
