"""Claims, writes, ends, rescues, cancels, retries and clocks in any order, by attempts that were replaced too.

Hypothesis looks for an order that leads outside of the legal states, over the real store and a real PostgreSQL.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text

from dreamforge.errors import Conflict, LeaseLost
from dreamforge.jobs.events import ItemStarted, StepStarted
from dreamforge.jobs.job import JOB_TRANSITIONS, STEP_TRANSITIONS, JobStatus, StepStatus
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.retry import TRANSIENT_CODES, RetryPolicy
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import ClaimStore
from dreamforge.store.endings import EndingStore, RetryRules
from dreamforge.store.fence import Fence
from dreamforge.store.jobs import NewJob
from dreamforge.store.rescues import RescueStore
from tests.integration.factories import Jobs, a_job, a_model, an_artifact, claim

pytestmark = pytest.mark.timeout(280)

POLICY = RetryPolicy(failures=2, crashes=2, rescues=3)
RULES = RetryRules(policy=POLICY, draw=lambda: 0.5)
MOST_JOBS = 3
OUTCOMES = st.sampled_from([None, "oom", "cancelled", *sorted(TRANSIENT_CODES)])
LOST = st.sampled_from([None, Failure("node_lost", "gone"), Failure("no_capacity", "full")])
ENDS = {f"job.{status}" for status in JobStatus if status.is_terminal}


@dataclass
class Seen:
    """What was known of a job after the last move."""

    status: JobStatus
    steps: list[StepStatus]
    beginnings: int = 1
    """How often it was queued: by its submission, and by each retry of a person's."""


class Service(RuleBasedStateMachine):
    """Dispatchers, supervisors, rescuers and clients of one database, none of which knows of the others."""

    engine: Engine
    jobs: Jobs

    def __init__(self) -> None:
        super().__init__()
        self.submitted: list[NewJob] = []
        self.fences: list[Fence] = []
        self.seen: dict[str, Seen] = {}

    @initialize()
    def begin_anew(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("TRUNCATE jobs, models CASCADE"))
        self.model = a_model(self.engine)

    @precondition(lambda self: len(self.submitted) < MOST_JOBS)
    @rule(count=st.integers(1, 3), steps=st.integers(1, 2))
    def submit(self, count: int, steps: int) -> None:
        new = a_job(self.model, count=count)
        self.jobs.submit(new)
        if steps == 2:
            with self.engine.begin() as connection:
                connection.execute(
                    text(
                        "INSERT INTO steps (id, job_id, name, position, lane, status)"
                        " VALUES (gen_random_uuid(), :job, 'upscale', 1, 'gpu', 'waiting')"
                    ),
                    {"job": new.id},
                )
        self.submitted.append(new)
        self.seen[str(new.id)] = Seen(JobStatus.QUEUED, [StepStatus.QUEUED, StepStatus.WAITING][:steps])

    @precondition(lambda self: self.submitted)
    @rule()
    def claim(self) -> None:
        found = claim(self.engine)
        if found is not None:
            self.fences.append(found.fence)

    @precondition(lambda self: self.submitted)
    @rule()
    def let_time_pass(self) -> None:
        """Every pause before a retry is over."""
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET next_attempt_at = NULL"))

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self._write(data, lambda attempt: attempt.start(StepStarted(step="s", attempt=1, node="n"), metadata={}))

    @precondition(lambda self: self.fences)
    @rule(data=st.data(), index=st.integers(0, 2))
    def publish(self, data: st.DataObject, index: int) -> None:
        """As supervisors do: what the attempt found missing when it began, in whatever order."""

        def draw(attempt: AttemptStore) -> None:
            missing = [item.index for item in attempt.load_call().items]
            if index < len(missing):
                attempt.begin_item(ItemStarted(item_index=missing[index], seed=index))
                attempt.publish(an_artifact(missing[index]))

        self._write(data, draw)

    @precondition(lambda self: self.fences)
    @rule(data=st.data(), code=OUTCOMES)
    def report(self, data: st.DataObject, code: str | None) -> None:
        outcome = Outcome(Failure(code, "it was so") if code else None)
        self._write(data, lambda attempt: attempt.report(outcome, metadata={}))

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        self._write(data, lambda attempt: attempt.renew(lease_seconds=30))

    @precondition(lambda self: self.fences)
    @rule(data=st.data(), lost=LOST)
    def finalize(self, data: st.DataObject, lost: Failure | None) -> None:
        self._only_of_the_holder(
            data, lambda fence: EndingStore(engine=self.engine, rules=RULES).finalize(fence, lost=lost)
        )

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        self._only_of_the_holder(data, lambda fence: ClaimStore(engine=self.engine, rules=RULES).put_back(fence))

    @precondition(lambda self: self.fences)
    @rule()
    def rescue(self) -> None:
        """Some lease runs out, and somebody looks."""
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE steps SET lease_expires_at = now() - interval '1 s' WHERE id ="
                    " (SELECT id FROM steps WHERE status = 'running' ORDER BY id LIMIT 1)"
                )
            )
        RescueStore(engine=self.engine, rules=RULES).rescue_one()

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.jobs.cancel(data.draw(st.sampled_from(self.submitted)).id)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.submitted)).id
        before = self.seen[str(job_id)].status
        try:
            self.jobs.retry(job_id)
        except Conflict:
            assert before not in {JobStatus.FAILED, JobStatus.CANCELLED} or self._all_succeeded(str(job_id))
        else:
            assert before in {JobStatus.FAILED, JobStatus.CANCELLED}
            self.seen[str(job_id)].beginnings += 1

    @invariant()
    def everything_fits(self) -> None:
        self._every_job_is_where_it_may_be()
        self._every_event_is_told_once()

    def _every_job_is_where_it_may_be(self) -> None:
        rows = self._rows(
            "SELECT jobs.id, jobs.status, jobs.items_done, jobs.cancel_requested_at IS NOT NULL AS cancelled,"
            " array_agg(steps.status ORDER BY steps.position) AS steps,"
            " bool_and((steps.lease_token IS NOT NULL) = (steps.status = 'running')) AS leases,"
            " max(steps.failures) AS failures, max(steps.crashes) AS crashes, max(steps.rescues) AS rescues"
            " FROM jobs JOIN steps ON steps.job_id = jobs.id GROUP BY jobs.id"
        )
        assert len(rows) == len(self.submitted)
        for row in rows:
            seen, status = self.seen[str(row.id)], JobStatus(row.status)
            steps = [StepStatus(step) for step in row.steps]
            assert status is seen.status or status in JOB_TRANSITIONS[seen.status]
            for before, after in zip(seen.steps, steps, strict=True):
                assert after is before or after in STEP_TRANSITIONS[before]
            _assert_fit(status, steps, cancelled=row.cancelled)
            assert row.leases, "whoever runs a step holds its lease, and nobody else does"
            assert (row.failures < POLICY.failures, row.crashes < POLICY.crashes) == (True, True)
            assert row.rescues < POLICY.rescues
            seen.status, seen.steps = status, steps

    def _every_event_is_told_once(self) -> None:
        for job_id, seen in self.seen.items():
            events = self._rows("SELECT * FROM events WHERE job_id = :id ORDER BY seq", id=job_id)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            told = Counter(event.code for event in events)
            ends = sum(told[code] for code in ENDS)
            assert ends == seen.beginnings - (not seen.status.is_terminal), "one end for each beginning"
            assert told["job.queued"] == seen.beginnings
            shares = [event.job_progress["fraction"] for event in events]
            assert shares == sorted(shares)
            finished = Counter(event.payload_json["item_index"] for event in events if event.code == "item.finished")
            made = self._rows("SELECT item_index FROM artifacts WHERE job_id = :id", id=job_id)
            assert finished == Counter(row.item_index for row in made)
            assert set(finished.values()) <= {1}, "no image is made again"

    def _write(self, data: st.DataObject, what: Callable[[AttemptStore], object]) -> None:
        self._only_of_the_holder(data, lambda fence: what(AttemptStore(engine=self.engine, fence=fence)))

    def _only_of_the_holder(self, data: st.DataObject, what: Callable[[Fence], object]) -> None:
        """Any attempt tries, the newest of a step or one that was replaced: it is let through if it holds the lease."""
        fence = data.draw(st.sampled_from(self.fences))
        holds = self._rows(
            "SELECT 1 FROM steps WHERE id = :step_id AND attempt = :attempt AND lease_token = :lease_token"
            " AND status = 'running'",
            **fence.values(),
        )
        try:
            what(fence)
        except LeaseLost:
            assert not holds
        else:
            assert holds

    def _all_succeeded(self, job_id: str) -> bool:
        return set(self.seen[job_id].steps) == {StepStatus.SUCCEEDED}

    def _rows(self, query: str, **values: Any) -> Sequence[Any]:
        with self.engine.connect() as connection:
            return connection.execute(text(query), values).all()


def _assert_fit(job: JobStatus, steps: list[StepStatus], *, cancelled: bool) -> None:
    """A job's state says nothing that its steps do not bear out."""
    if job.is_terminal:
        assert all(step.is_terminal for step in steps)
    else:
        assert not all(step.is_terminal for step in steps)
    assert (job is JobStatus.CANCELLING) == (cancelled and not job.is_terminal)
    if job is JobStatus.CANCELLING:
        assert StepStatus.RUNNING in steps, "somebody is there who will end it"
    if cancelled:
        assert StepStatus.QUEUED not in steps, "nothing of it is begun any more"
    if job is JobStatus.SUCCEEDED:
        assert set(steps) == {StepStatus.SUCCEEDED}
    if job is JobStatus.QUEUED:
        assert StepStatus.RUNNING not in steps


def test_no_order_of_moves_and_faults_leads_outside_the_legal_states(engine: Engine, database_url: str) -> None:
    Service.engine, Service.jobs = engine, Jobs(database_url)
    run_state_machine_as_test(
        Service,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
