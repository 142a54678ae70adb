"""Requests made from the OpenAPI document, good and bad: no answer is a 5xx, and none is outside of the document."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD, api_state, served
from tests.openapi_document import document
from tests.web import web

_CASES = 25
"""Of each operation, good and bad."""
_CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture
def job_id(url: str) -> str:
    """A job that has ended."""
    job = web.post(f"{url}/v1/jobs", json=GOOD).json()
    assert web.post(f"{url}{job['links']['cancel']}").json()["status"] == "cancelled"
    return job["id"]


@pytest.fixture
def url(database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel) -> Iterator[str]:
    """The application, on a port of its own."""
    assert model
    with served(api_state(database_url, redis_url, object_store.blobs())) as url:
        yield url


def _requests() -> Iterator[Any]:
    """Good ones for each operation, and bad ones where there is anything that can be bad."""
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            yield pytest.param(path, method, GenerationMode.POSITIVE, id=f"{operation['operationId']}-good")
            inputs = {parameter["in"] for parameter in operation.get("parameters", [])}
            if "query" in inputs or "requestBody" in operation:
                yield pytest.param(path, method, GenerationMode.NEGATIVE, id=f"{operation['operationId']}-bad")


@pytest.mark.parametrize(("path", "method", "mode"), list(_requests()))
def test_no_answer_is_outside_of_the_document(
    url: str, job_id: str, path: str, method: str, mode: GenerationMode
) -> None:
    described = schemathesis.openapi.from_url(f"{url}/openapi.json")[path][method]
    strategy = described.as_strategy(generation_mode=mode)

    @seed(8700)
    @settings(
        max_examples=_CASES, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )
    @given(case=strategy)
    def ask(case: schemathesis.Case[Any]) -> None:
        _let_it_come_to_an_end(case, job_id)
        response = case.call(timeout=30)
        case.validate_response(response, checks=_CHECKS)
        assert response.status_code < 400 or len(response.content) < 4096

    ask()


def _let_it_come_to_an_end(case: schemathesis.Case[Any], job_id: str) -> None:
    """Nothing waits for a job; every other job that is asked about is one that there is."""
    case.headers.pop("Prefer", None)
    case.query.pop("follow", None)
    made_up = case.path_parameters.get("job_id")
    if case.method == "GET" and made_up is not None and not case.path.endswith("/stream"):
        case.path_parameters["job_id"] = job_id if len(str(made_up)) % 2 else made_up
