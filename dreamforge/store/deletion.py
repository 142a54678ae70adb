"""Deleting a job: every row of it, in one transaction. Its objects are removed once they have no row."""

import uuid
from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from dreamforge.errors import Conflict
from dreamforge.jobs.job import JobStatus
from dreamforge.store.tables import ArtifactRow, JobRow


def delete_job(connection: Connection, job_id: uuid.UUID, *, user_id: str) -> Sequence[str] | None:
    """Delete the job with its steps, items, events and artifacts; the keys of its objects, which nobody knows now.

    None when this user has no such job. Raises ``Conflict`` for one that is not over.
    """
    status = connection.scalar(
        select(JobRow.status).where(JobRow.id == job_id, JobRow.user_id == user_id).with_for_update()
    )
    if status is None:
        return None
    if not JobStatus(status).is_terminal:
        raise Conflict(
            f"Only a job that is over can be deleted; this one is {status}. Cancel it first.",
            details={"status": status},
            job_id=job_id,
        )
    query = select(ArtifactRow.s3_key).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.item_index)
    keys = connection.scalars(query).all()
    connection.execute(delete(JobRow).where(JobRow.id == job_id))
    return keys
