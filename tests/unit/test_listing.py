"""Which jobs a list is asked for, as SQL."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.dialects import postgresql

from dreamforge.store.listing import JobFilter, page_of_jobs

_MODEL = uuid.UUID(int=7)
_TIME = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def _where(wanted: JobFilter) -> str:
    compiled = page_of_jobs(wanted, user_id="somebody", after=None, limit=1).compile(
        dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}
    )
    return str(compiled).partition("WHERE ")[2].partition(" \nLIMIT")[0].partition(" ORDER BY")[0]


@pytest.mark.parametrize(
    ("wanted", "condition"),
    [
        ({"statuses": ("queued", "running")}, "jobs.status IN ('queued', 'running')"),
        # There is one type so far, and the table takes no other: no list of real jobs would show the filter.
        ({"type": "upscale"}, "jobs.type = 'upscale'"),
        ({"model_ids": (_MODEL,)}, f"jobs.model_id IN ('{_MODEL}')"),
        ({"created_after": _TIME}, "jobs.created_at > '2026-03-01 12:00:00+00:00'"),
        ({"created_before": _TIME}, "jobs.created_at < '2026-03-01 12:00:00+00:00'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_part_of_a_filter_is_a_condition(wanted: dict[str, Any], condition: str) -> None:
    assert _where(JobFilter(**wanted)) == f"{_where(JobFilter())} AND {condition}"


def test_a_filter_of_nothing_is_every_job_of_the_user() -> None:
    assert _where(JobFilter()) == "jobs.user_id = 'somebody'"
