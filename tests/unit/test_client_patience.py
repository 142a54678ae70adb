"""How long the client waits for a job, and for a service that does not answer."""

import pytest

from dreamforge.client.calls import Call
from dreamforge.client.errors import Unreachable, WaitTimeout
from dreamforge.client.flows import waited, watched
from dreamforge.client.patience import PATIENT_SECONDS, Pause
from tests.unit.test_client import AWAY, Clock, Played, Slow, a_job


def test_a_job_is_asked_for_more_rarely_while_nothing_changes() -> None:
    jobs = [a_job(), a_job(), a_job(), a_job(), a_job(updated=5), a_job("succeeded", updated=6)]
    played = Played(watched("1", timeout=None, now=Clock()), *jobs)
    assert played.given == jobs
    assert played.result.status == "succeeded"
    first, *slower, again = played.pauses
    assert slower == sorted(set(slower))
    assert slower[0] > first == again


def test_waiting_outlives_a_service_that_is_started_again_but_not_one_that_is_gone() -> None:
    clock = Clock()
    back = Played(waited("1", timeout=None, now=clock), *[AWAY] * 19, a_job("failed"), clock=clock)
    assert back.result.status == "failed"
    assert 30 < sum(back.pauses) < PATIENT_SECONDS
    with pytest.raises(Unreachable):
        Played(waited("1", timeout=None, now=clock), *[AWAY] * 21, clock=clock)


def test_patience_is_a_time_and_not_a_number_of_attempts() -> None:
    clock = Clock()
    with pytest.raises(Unreachable):
        Played(waited("1", timeout=None, now=clock), Slow(30, AWAY), Slow(5, AWAY), clock=clock)
    late = Played(waited("1", timeout=None, now=clock), Slow(60, AWAY), a_job("failed"), clock=clock)
    assert late.result.status == "failed", "whoever took all the time is asked once more"


def test_a_wait_ends_in_time_although_nobody_answers() -> None:
    clock = Clock()
    with pytest.raises(WaitTimeout, match="was not heard of after 5 s") as caught:
        Played(waited("1", timeout=5, now=clock), *[AWAY] * 6, clock=clock)
    assert (caught.value.status, clock.seconds) == (None, 5)
    assert isinstance(caught.value.__cause__, Unreachable)
    with pytest.raises(WaitTimeout, match="still running after 5 s"):
        Played(waited("1", timeout=5, now=clock), a_job(), Slow(5, AWAY), clock=clock)
    (first,) = [waited("1", timeout=5, now=clock).send(None)]
    assert isinstance(first, Call)
    assert first.most == 5, "nor does one answer take longer"


def test_clients_do_not_come_in_step() -> None:
    drawn = {Pause(2.0, spread=0.5).drawn() for _ in range(100)}
    assert len(drawn) > 50
    assert all(2.0 <= seconds <= 2.5 for seconds in drawn)


def test_waiting_ends_when_its_time_is_up() -> None:
    clock = Clock()
    with pytest.raises(WaitTimeout, match="still running after 5 s"):
        Played(waited("1", timeout=5, now=clock), a_job(), Slow(4.8, a_job()), clock=clock)
    assert clock.seconds == 5
