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
        eta_seconds=None if job.eta_seconds is None else round(job.eta_seconds, 1),
        last_seq=job.last_seq,
        items=[_item_view(item) for item in job.items],
    )


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
