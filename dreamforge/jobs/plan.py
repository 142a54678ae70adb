"""From a job's type to its ordered steps."""

from dataclasses import dataclass

from dreamforge.jobs.job import JobType, Lane


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan. ``items`` is how many images it makes; a download is one item, without an image."""

    name: str
    position: int
    lane: Lane
    items: int


def plan(job_type: JobType, *, count: int) -> tuple[PlannedStep, ...]:
    """The steps of a job, in order.

    >>> [step.name for step in plan(JobType.GENERATE, count=4)]
    ['generate']
    """
    match job_type:
        case JobType.GENERATE:
            return (PlannedStep(name="generate", position=0, lane=Lane.GPU, items=count),)
        case JobType.MODEL_DOWNLOAD:
            return (PlannedStep(name="download", position=0, lane=Lane.IO, items=1),)
