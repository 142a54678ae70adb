"""Pages of jobs, newest first. A page is told in five statements at most, however many jobs are on it.

A place in the list is (created_at, id) in the order of the index on ``jobs(user_id, created_at DESC, id)``: rows that
are added meanwhile stand before every place that was given out, so nothing is skipped or repeated.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, func, literal_column, or_, select
from sqlalchemy.dialects.postgresql import aggregate_order_by

from dreamforge.jobs.job import ItemStatus, StepStatus
from dreamforge.jobs.retry import DEAD_LETTER_CODES
from dreamforge.store.tables import ItemRow, JobRow, StepRow


@dataclass(frozen=True)
class JobPlace:
    """Where a page ends."""

    created_at: datetime
    id: uuid.UUID


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list. Empty collections mean all; the times are exclusive."""

    statuses: Collection[str] = ()
    error_codes: Collection[str] = ()
    type: str | None = None
    model_ids: Collection[uuid.UUID] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The filter as SQL."""
        conditions: list[ColumnElement[bool]] = []
        if self.statuses:
            conditions.append(JobRow.status.in_(self.statuses))
        if self.error_codes:
            conditions.append(_failed_with(self.error_codes))
        if self.type is not None:
            conditions.append(JobRow.type == self.type)
        if self.model_ids:
            conditions.append(JobRow.model_id.in_(self.model_ids))
        if self.created_after is not None:
            conditions.append(JobRow.created_at > self.created_after)
        if self.created_before is not None:
            conditions.append(JobRow.created_at < self.created_before)
        return conditions


def _failed_with(codes: Collection[str]) -> ColumnElement[bool]:
    code = JobRow.error_json.op("->>", return_type=String())(literal_column("'code'"))
    if DEAD_LETTER_CODES.issuperset(codes):
        # As their index has it, which no plan uses for what comes as a parameter.
        return code.in_([literal_column(f"'{name}'") for name in DEAD_LETTER_CODES.intersection(codes)])
    return code.in_(codes)


def page_of_jobs(wanted: JobFilter, *, user_id: str, after: JobPlace | None, limit: int) -> Select[JobRow]:
    """The query for the jobs of one page."""
    query = select(JobRow).where(JobRow.user_id == user_id, *wanted.conditions())
    if after is not None:
        # The first half alone bounds the index scan; the second tells jobs of the same microsecond apart.
        is_behind = or_(JobRow.created_at < after.created_at, JobRow.id > after.id)
        query = query.where(and_(JobRow.created_at <= after.created_at, is_behind))
    return query.order_by(JobRow.created_at.desc(), JobRow.id).limit(limit)


def steps_of(job_ids: Sequence[uuid.UUID]) -> Select[StepRow]:
    """The query for the steps of jobs, each job's in order."""
    return select(StepRow).where(StepRow.job_id.in_(job_ids)).order_by(StepRow.job_id, StepRow.position)


def item_counts_of(job_ids: Sequence[uuid.UUID]) -> Select[*tuple[Any, ...]]:
    """The query for each job's number of items, and the stage of the one that was begun last and is running."""
    is_running = and_(ItemRow.status == ItemStatus.RUNNING, StepRow.status == StepStatus.RUNNING)
    stages = func.array_agg(aggregate_order_by(ItemRow.stage, ItemRow.started_at.desc())).filter(is_running)
    return (
        select(StepRow.job_id, func.count().label("total"), stages.label("stages"))
        .join(ItemRow, ItemRow.step_id == StepRow.id)
        .where(StepRow.job_id.in_(job_ids))
        .group_by(StepRow.job_id)
    )
