"""Requests made from the OpenAPI document, good and bad: no answer is a 5xx, and none is outside of the document."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from dreamforge.api.openapi import SSE
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.engine import open_engine
from tests.integration.door import GOOD, api_state, served
from tests.integration.factories import a_model, finish
from tests.openapi_document import document
from tests.web import web

_DOCUMENT = document()
_CASES = 25
"""Of each operation, good and bad."""
_CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
_TRIES = 10
_AS_DRAWN, _FROM_THE_START, _AT_THE_END = "as drawn", "from the start", "at the end"


class _HasStatus(Protocol):
    @property
    def status_code(self) -> int: ...


_Answer = TypeVar("_Answer", bound=_HasStatus)


@dataclass(frozen=True)
class Service:
    """The application on a port of its own, and what there is to ask about."""

    url: str
    schema: Any
    finished: str
    """A job that has succeeded."""
    last_seq: int
    """Of its events."""
    artifact: UUID
    """Its image."""

    def queued(self) -> str:
        """A new job."""
        return _served(lambda: web.post(f"{self.url}/v1/jobs", json=GOOD)).json()["id"]

    def cancelled(self) -> str:
        """A new job that is over."""
        job_id = self.queued()
        cancelled = _served(lambda: web.post(f"{self.url}/v1/jobs/{job_id}/cancel"))
        assert cancelled.json()["status"] == "cancelled"
        return job_id


@dataclass(frozen=True)
class Choice:
    """What is put in the place of what was drawn: nobody guesses the id of a job, nor what the model takes."""

    is_real: bool
    is_over: bool
    place: str


_choices = st.builds(
    Choice,
    is_real=st.sampled_from([True, True, False]),
    is_over=st.booleans(),
    place=st.sampled_from([_AS_DRAWN, _FROM_THE_START, _AT_THE_END]),
)


@pytest.fixture(scope="module")
def service(database_url: str, redis_url: str, object_store: ObjectStore) -> Iterator[Service]:
    """One service for all: what is asked leaves nothing behind that another answer depends on."""
    engine, blobs = open_engine(database_url, application="tests"), object_store.blobs()
    a_model(engine, name="tiny")
    with served(api_state(database_url, redis_url, blobs)) as url:
        job = web.post(f"{url}/v1/jobs", json=GOOD).json()
        (artifact,) = finish(engine, blobs, count=1)
        last_seq = web.get(f"{url}{job['links']['progress']}").json()["last_seq"]
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        yield Service(url, schema, job["id"], last_seq, artifact.id)
    engine.dispose()


def _requests() -> Iterator[Any]:
    """Good ones for each operation, and bad ones where there is anything that can be bad."""
    for path, operations in _DOCUMENT["paths"].items():
        for method, operation in operations.items():
            yield pytest.param(path, method, GenerationMode.POSITIVE, id=f"{operation['operationId']}-good")
            inputs = {parameter["in"] for parameter in operation.get("parameters", [])}
            if "query" in inputs or "requestBody" in operation:
                yield pytest.param(path, method, GenerationMode.NEGATIVE, id=f"{operation['operationId']}-bad")


@pytest.mark.parametrize(("path", "method", "mode"), list(_requests()))
def test_no_answer_is_outside_of_the_document(service: Service, path: str, method: str, mode: GenerationMode) -> None:
    described = service.schema[path][method]
    is_good = mode is GenerationMode.POSITIVE
    met: set[int] = set()

    @seed(8700)
    @settings(
        max_examples=_CASES, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )
    @given(case=described.as_strategy(generation_mode=mode), choice=_choices)
    def ask(case: schemathesis.Case[Any], choice: Choice) -> None:
        _let_it_come_to_an_end(case)
        if choice.is_real:
            _name_what_there_is(case, service, choice)
            if is_good:
                _ask_for_what_can_be_done(case, service, choice)
        # A presigned URL leads to the store, which is not in the document.
        response = _served(lambda: case.call(timeout=30, allow_redirects=False))
        met.add(response.status_code)
        if any(value.startswith(SSE) for value in response.headers.get("content-type", [])):
            case.validate_response(response, checks=_CHECKS, excluded_checks=[checks.response_schema_conformance])
            _assert_events(response.text, _DOCUMENT["paths"][path][method]["responses"]["200"])
        else:
            case.validate_response(response, checks=_CHECKS)
        assert response.status_code < 400 or len(response.content) < 4096

    ask()
    promised = {int(status) for status in described.definition.raw["responses"] if status.startswith("2")}
    assert not is_good or promised <= met, f"no answer was one of {promised - met}"


def _served(ask: Callable[[], _Answer]) -> _Answer:
    """The answer. A service that is too busy says so: it is asked again, and shall not say it for ever."""
    answer = ask()
    for _ in range(_TRIES):
        if answer.status_code != 503:
            break
        answer = ask()
    return answer


def _assert_events(stream: str, described: dict[str, Any]) -> None:
    """Each event is as the document has it. Schemathesis takes the schema of the stream for that of one event."""
    schema = described["content"][SSE]["schema"]["contentSchema"]
    validator = Draft202012Validator({"components": _DOCUMENT["components"], **schema})
    told = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    assert told
    for data in told:
        validator.validate(json.loads(data))


def _let_it_come_to_an_end(case: schemathesis.Case[Any]) -> None:
    """Nothing waits for a job."""
    case.headers.pop("Prefer", None)
    case.query.pop("follow", None)


def _name_what_there_is(case: schemathesis.Case[Any], service: Service, choice: Choice) -> None:
    """The ids of the path are those of things that are there, in a state in which the request can be met."""
    for name in case.path_parameters:
        match name, (case.method, case.path.rpartition("/")[2]):
            case "job_id", ("POST", "cancel"):
                real = service.cancelled() if choice.is_over else service.queued()
            case "job_id", ("POST", "retry") | ("DELETE", _):
                real = service.cancelled()
            case "job_id", _:
                real = service.finished
            case "artifact_id", _:
                real = str(service.artifact)
            case _:
                real = "tiny"
        case.path_parameters[name] = real


def _ask_for_what_can_be_done(case: schemathesis.Case[Any], service: Service, choice: Choice) -> None:
    """Parameters that the model takes; a reference that can be read; a place that the job has come to."""
    if isinstance(case.body, dict):
        is_download = case.path.endswith("/admin/models")
        case.body |= (
            {"source": "hf:org/repo"} if is_download else {"params": {"prompt": "a lighthouse"}, "model_id": None}
        )
    if case.path.endswith("/stream") and choice.place != _AS_DRAWN:
        case.headers.pop("Last-Event-ID", None)
        case.query["after"] = service.last_seq if choice.place == _AT_THE_END else 0
