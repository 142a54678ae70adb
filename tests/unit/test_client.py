"""The client without a network: requests, answers, flows, files."""

import hashlib
import json
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dreamforge.api.schemas import Artifact, ArtifactList, Job
from dreamforge.client import calls
from dreamforge.client.calls import Call, JobQuery, read_answer
from dreamforge.client.errors import ApiError, ChecksumMismatch, ClientError, UnexpectedAnswer, Unreachable
from dreamforge.client.flows import (
    Course,
    Fetch,
    Flow,
    Give,
    Listen,
    answered,
    deleted,
    downloaded,
    paged,
)
from dreamforge.client.part import PartFile
from dreamforge.client.patience import RETRY_PAUSES, Pause

AWAY = Unreachable("http://here", "refused")
URL = "http://here/v1/jobs"


def a_job(status: str = "running", *, updated: int = 0, **values: Any) -> Job:
    """A job as the service tells it."""
    return Job.model_validate(
        {
            "id": str(uuid.UUID(int=7)),
            "type": "generate",
            "status": status,
            "model_id": None,
            "count": 1,
            "priority": "normal",
            "params": {"prompt": "a fox"},
            "options": {},
            "metadata": {},
            "created_at": "2026-03-01T12:00:00Z",
            "updated_at": datetime(2026, 3, 1, 12, 0, updated, tzinfo=UTC),
            "started_at": None,
            "finished_at": None,
            "expires_at": None,
            "progress": {"fraction": 0.0, "items_done": 0, "items_total": 1, "stage": None},
            "steps": [],
            "error": None,
            "links": {
                "self": "/j",
                "artifacts": "/j/a",
                "logs": "/j/l",
                "progress": "/j/p",
                "stream": "/j/s",
                "cancel": "/j/c",
            },
            **values,
        }
    )


def _artifact(data: bytes) -> Artifact:
    return Artifact.model_validate(
        {
            "id": str(uuid.UUID(int=1)),
            "job_id": str(uuid.UUID(int=7)),
            "step_id": str(uuid.UUID(int=2)),
            "item_index": 0,
            "format": "png",
            "width": 64,
            "height": 64,
            "seed": 5,
            "size_bytes": len(data),
            "checksum": f"sha256:{hashlib.sha256(data).hexdigest()}",
            "created_at": "2026-03-01T12:00:00Z",
            "expires_at": None,
            "url": "http://store/key?X-Amz-Signature=secret",
            "url_expires_at": "2026-03-01T13:00:00Z",
            "metadata": {},
        }
    )


class Clock:
    """A time that only pauses and slow answers move on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Slow:
    """An answer that takes its time, in seconds."""

    seconds: float
    answer: object


class Played:
    """Performs a flow's effects from a list of answers; what was paused, asked and given."""

    def __init__(self, flow: Flow[Any, Any], *answers: object, clock: Clock | None = None) -> None:
        clock = clock or Clock()
        self.pauses: list[float] = []
        self.asked: list[str] = []
        self.given: list[Any] = []
        self.result: Any = None
        waiting = list(answers)

        def next_answer() -> object:
            answer = waiting.pop(0)
            if isinstance(answer, Slow):
                clock.seconds += answer.seconds
                return answer.answer
            return answer

        with Course(flow) as course:
            while course.effect is not None:
                match course.effect:
                    case Give(value=value):
                        self.given.append(value)
                        course.answer(None)
                    case Pause(seconds=seconds):
                        self.pauses.append(seconds)
                        clock.seconds += seconds
                        course.answer(None)
                    case Call(path=path) as call:
                        self.asked.append("?".join([path, *(f"{name}={value}" for name, value in call.params)]))
                        course.answer(next_answer())
                    case Listen(after=after):
                        self.asked.append(f"stream after {after}")
                        course.answer(next_answer())
                    case Fetch(part=part):
                        answer = next_answer()
                        # Before an error some bytes have come.
                        part.write(answer if isinstance(answer, bytes) else b"torn")
                        course.answer(answer)
            self.result = course.result
        assert not waiting, "every answer was asked for"


def _api_error(status: int, code: str = "x") -> ApiError:
    return ApiError(status=status, code=code, message="m", details={}, request_id=None)


def test_a_call_that_reads_is_repeated_while_the_trouble_may_pass() -> None:
    played = Played(answered(calls.get_job("1")), AWAY, _api_error(503), UnexpectedAnswer(URL, status=502), "there")
    assert (played.result, tuple(played.pauses)) == ("there", RETRY_PAUSES)


def test_it_gives_up_after_its_pauses() -> None:
    with pytest.raises(Unreachable):
        Played(answered(calls.get_job("1")), *[AWAY] * (len(RETRY_PAUSES) + 1))


def test_a_post_with_a_key_is_repeated_as_it_was() -> None:
    call = calls.submit_job({}, key="k", wait=30)
    assert (call.headers, call.patience) == ((("Idempotency-Key", "k"), ("Prefer", "wait=30")), 30)
    played = Played(answered(call), AWAY, _api_error(503), UnexpectedAnswer(URL, status=502), "there")
    assert (played.result, tuple(played.pauses)) == ("there", RETRY_PAUSES)
    with pytest.raises(ApiError):
        Played(answered(call), _api_error(422, "idempotency_key_reused"))


def test_what_writes_waits_as_long_as_the_service_says_and_what_reads_does_not() -> None:
    envelope = json.dumps({"error": {"code": "database_unavailable", "message": "Away."}}).encode()
    for header, seconds in (("5", 5.0), ("0", None), ("999999", 30.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None)):
        error = read_answer(calls.get_job("1"), URL, 503, envelope, retry_after=header)
        assert isinstance(error, ApiError)
        assert Played(answered(calls.submit_job({}, key="k")), error, "there").pauses == [seconds or RETRY_PAUSES[0]]
        assert Played(answered(calls.get_job("1")), error, "there").pauses == [RETRY_PAUSES[0]]


@pytest.mark.parametrize("key", ["", "a" * 256, "a b", "caf\xe9", "line\nbreak"])
def test_what_is_no_key_is_refused_before_it_is_sent(key: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII"):
        calls.submit_job({}, key=key)


@pytest.mark.parametrize("wait", [-1, 61])
def test_a_wait_has_its_limits(wait: int) -> None:
    with pytest.raises(ValueError, match="60 seconds"):
        calls.submit_job({}, wait=wait)


def test_new_keys_are_keys_and_differ() -> None:
    keys = {calls.new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(calls.submit_job({}, key=key).is_idempotent for key in keys)


def test_a_deletion_whose_answer_was_lost_is_done() -> None:
    def lost_then_gone() -> tuple[list[frozenset[int]], object]:
        asked: list[frozenset[int]] = []
        with Course(deleted("1")) as course:
            while course.effect is not None:
                if isinstance(course.effect, Pause):
                    course.answer(None)
                    continue
                assert isinstance(course.effect, Call)
                asked.append(course.effect.answers)
                course.answer(AWAY if len(asked) == 1 else read_answer(course.effect, URL, 404, b"{}"))
            return asked, course.result

    assert lost_then_gone() == ([frozenset(), frozenset({404})], None)
    with pytest.raises(ApiError):
        Played(deleted("1"), _api_error(404, "not_found"))
    with pytest.raises(ApiError):
        Played(deleted("1"), AWAY, _api_error(409, "conflict"))


@pytest.mark.parametrize("call", [calls.submit_job({}), calls.retry_job("1")])
def test_a_call_that_writes_is_made_once(call: Call[Job]) -> None:
    with pytest.raises(Unreachable):
        Played(answered(call), AWAY)


def test_a_cancel_may_be_asked_for_again() -> None:
    assert Played(answered(calls.cancel_job("1")), AWAY, "there").result == "there"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_the_edge_says_of_a_service_that_is_away_passes(status: int) -> None:
    away = _api_error(status, "service_unavailable")
    assert Played(answered(calls.submit_job({}, key="k")), away, "there").result == "there"


@pytest.mark.parametrize("error", [_api_error(404), _api_error(500), UnexpectedAnswer(URL, status=200)])
def test_trouble_that_stays_is_told_at_once(error: ClientError) -> None:
    with pytest.raises(type(error)):
        Played(answered(calls.get_job("1")), error)


def test_pages_are_asked_for_until_there_is_no_cursor() -> None:
    artifact = _artifact(b"x")
    first, last = ArtifactList(items=[artifact], next_cursor="c1"), ArtifactList(items=[artifact], next_cursor=None)
    flow = paged(lambda cursor: calls.list_artifacts("1", cursor=cursor))
    played = Played(flow, first, AWAY, last)
    assert played.given == [artifact, artifact]
    assert played.asked[-1] == "/v1/jobs/1/artifacts?limit=200?cursor=c1"


def test_a_page_is_asked_for_only_when_it_is_needed() -> None:
    flow = paged(lambda cursor: calls.list_artifacts("1", cursor=cursor))
    with Course(flow) as course:
        course.answer(ArtifactList(items=[_artifact(b"x")], next_cursor="c1"))
        assert isinstance(course.effect, Give)


def test_what_is_not_given_is_left_to_the_service() -> None:
    body = calls.job_body(
        "a fox", count=2, model=None, priority="low", metadata={}, options={}, params={"seed": 0, "width": None}
    )
    assert body == {"type": "generate", "count": 2, "priority": "low", "params": {"prompt": "a fox", "seed": 0}}
    body = calls.job_body(
        "a fox", count=1, model="m", priority="low", metadata={"a": "b"}, options={"step_timeout": 5}, params={}
    )
    assert (body["model_id"], body["metadata"], body["options"]) == ("m", {"a": "b"}, {"step_timeout": 5})


def test_a_filter_is_sent_as_the_route_takes_it() -> None:
    query = JobQuery(("failed", "running"), "generate", "tiny@1", datetime(2026, 3, 1, tzinfo=UTC))
    assert query.params() == (
        ("status", "failed"),
        ("status", "running"),
        ("type", "generate"),
        ("model_id", "tiny@1"),
        ("created_after", "2026-03-01T00:00:00+00:00"),
    )


def test_an_id_from_a_person_stays_one_part_of_the_path() -> None:
    assert calls.get_job("../../readyz?x=1").path == "/v1/jobs/..%2F..%2Freadyz%3Fx%3D1"


def test_an_envelope_becomes_an_error_with_everything_it_says() -> None:
    envelope = {
        "error": {"code": "unknown_model", "message": "No.", "details": {"a": 1}, "job_id": None, "request_id": "r"}
    }
    error = read_answer(calls.get_job("1"), URL, 422, json.dumps(envelope).encode())
    assert isinstance(error, ApiError)
    assert (error.status, error.code, error.message, error.details, error.request_id) == (
        422, "unknown_model", "No.", {"a": 1}, "r",
    )  # fmt: skip


@pytest.mark.parametrize(("status", "content"), [(200, b"<html>"), (404, b"<html>"), (200, b"{}"), (502, b"")])
def test_another_program_s_answer_is_not_taken_for_ours(status: int, content: bytes) -> None:
    error = read_answer(calls.get_job("1"), URL, status, content)
    assert isinstance(error, UnexpectedAnswer)
    assert error.status == status


def test_readiness_is_an_answer_even_when_the_service_is_not_ready() -> None:
    content = json.dumps({"status": "unavailable", "checks": {}}).encode()
    readiness = read_answer(calls.get_readiness(), URL, 503, content)
    assert not isinstance(readiness, ClientError)
    assert readiness.status == "unavailable"
    envelope = json.dumps({"error": {"code": "service_unavailable", "message": "Starting."}}).encode()
    assert isinstance(read_answer(calls.get_readiness(), URL, 503, envelope), ApiError)


def test_what_a_newer_service_says_besides_is_no_trouble() -> None:
    content = {**json.loads(a_job().model_dump_json()), "mood": "good"}
    assert isinstance(read_answer(calls.get_job("1"), URL, 200, json.dumps(content).encode()), Job)


def test_a_download_appears_whole_under_its_name(tmp_path: Path) -> None:
    target = tmp_path / "fox.png"
    played = Played(downloaded(_artifact(b"whole"), target, overwrite=False), AWAY, b"whole")
    assert (played.result, target.read_bytes(), played.pauses) == (target, b"whole", [RETRY_PAUSES[0]])
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_that_is_not_what_was_stored_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ChecksumMismatch):
        Played(downloaded(_artifact(b"whole"), tmp_path / "fox.png", overwrite=False), b"torn")
    assert not list(tmp_path.iterdir())


def test_a_refused_download_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnexpectedAnswer):
        Played(downloaded(_artifact(b"x"), tmp_path / "x", overwrite=False), UnexpectedAnswer("u", status=403))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    target = tmp_path / "fox.png"
    target.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        Played(downloaded(_artifact(b"whole"), target, overwrite=False))
    assert target.read_bytes() == b"mine"
    Played(downloaded(_artifact(b"whole"), target, overwrite=True), b"whole")
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_that_is_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "fox.png"
    checksum = _artifact(b"whole").checksum
    with PartFile(target) as part:
        part.write(b"whole")
        target.write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            part.publish(checksum=checksum, overwrite=False)
    assert target.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [target]


def test_importing_the_client_brings_no_server() -> None:
    heavy = ["fastapi", "starlette", "sqlalchemy", "ray", "redis", "rq", "minio", "torch", "uvicorn"]
    code = f"import sys, dreamforge.client; print(sorted(set({heavy}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
