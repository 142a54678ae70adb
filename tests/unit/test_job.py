"""The state tables and the plan."""

import pytest

from dreamforge.jobs.job import (
    JOB_TRANSITIONS,
    STEP_TRANSITIONS,
    JobStatus,
    JobType,
    Lane,
    StepStatus,
    legal_predecessors,
    legal_step_predecessors,
)
from dreamforge.jobs.plan import plan


def test_every_status_has_its_row_of_transitions() -> None:
    assert set(JOB_TRANSITIONS) == set(JobStatus)
    assert set(STEP_TRANSITIONS) == set(StepStatus)


@pytest.mark.parametrize("status", [status for status in JobStatus if status.is_terminal])
def test_a_finished_job_is_left_only_by_a_retry(status: JobStatus) -> None:
    assert JOB_TRANSITIONS[status] <= {JobStatus.QUEUED}


def test_a_succeeded_job_stays_so() -> None:
    assert not JOB_TRANSITIONS[JobStatus.SUCCEEDED]
    assert not STEP_TRANSITIONS[StepStatus.SUCCEEDED]


def test_predecessors_are_the_transitions_read_backwards() -> None:
    assert set(legal_predecessors(JobStatus.RUNNING)) == {JobStatus.QUEUED}
    assert set(legal_step_predecessors(StepStatus.RUNNING)) == {StepStatus.QUEUED}
    assert StepStatus.RUNNING in legal_step_predecessors(StepStatus.QUEUED)


def test_a_generate_job_is_one_step_on_a_gpu() -> None:
    (step,) = plan(JobType.GENERATE, count=3)
    assert (step.name, step.position, step.lane, step.items) == ("generate", 0, Lane.GPU, 3)
