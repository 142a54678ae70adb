"""One envelope for every error, and the one table from error to HTTP status.

What the service means is a ``DreamForgeError``; what is wrong with HTTP itself (a method, a header, a body that is no
JSON) is an ``HttpError``. Both are answered with ``ErrorEnvelope``, in less than ``MOST_BYTES``.
"""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Match

from dreamforge import errors
from dreamforge.api.request_id import HEADER, request_id_of
from dreamforge.api.schemas import ErrorBody, ErrorEnvelope
from dreamforge.errors import DreamForgeError, InvalidRequest

log = logging.getLogger(__name__)

STATUS_OF_ERROR: dict[type[DreamForgeError], int] = {
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.InvalidRequest: 422,
    errors.UnknownModel: 422,
    errors.ModelNotInstalled: 422,
    errors.ModelDisabled: 422,
    errors.ModelIncompatible: 422,
    errors.IdempotencyKeyReused: 422,
    errors.RateLimited: 429,
    errors.QueueFull: 429,
    errors.DatabaseUnavailable: 503,
    errors.QueueUnavailable: 503,
    errors.StorageUnavailable: 503,
}
"""Every other error is the service's own fault: 500 `internal`."""
HTTP_ERRORS: dict[int, tuple[str, str]] = {
    400: ("invalid_request", "The request is not valid."),
    403: ("forbidden", "The service does not do this."),
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take this method."),
    408: ("request_timeout", "The request did not arrive in time."),
    413: ("body_too_large", "The request body is too large."),
    415: ("unsupported_media_type", "Send the body as application/json."),
}
"""Code and usual message of what is wrong with HTTP itself."""
MOST_BYTES = 4096
"""An error's body stays below."""
RETRY_AFTER_SECONDS = 5
"""What `Retry-After` says with every 429 and 503."""
BAD_JSON = "The body is not valid JSON."

_INVALID = "The request is not valid."
_BUG = "Something went wrong inside the service."
_MOST_ERRORS = 20
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class HttpError(HTTPException):
    """An error of HTTP itself, with its details: what is wrong with the body or a header.

    ``status_code`` is one of ``HTTP_ERRORS``, or 422 for a body whose text cannot be kept.
    """

    def __init__(self, status_code: int, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(status_code, message)
        self.details = dict(details or {})


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for these statuses; ``dreamforge.api.openapi`` adds headers and examples."""
    return {status: {"model": ErrorEnvelope} for status in statuses}


def install_error_handlers(app: FastAPI) -> None:
    """Have every error of the application answered in the envelope."""
    app.exception_handler(DreamForgeError)(_on_domain_error)
    app.exception_handler(RequestValidationError)(_on_invalid)
    app.exception_handler(HTTPException)(_on_http_error)
    app.exception_handler(Exception)(_on_bug)


def envelope(
    request: HTTPConnection,
    status: int,
    code: str,
    message: str,
    *,
    details: Mapping[str, Any] | None = None,
    job_id: uuid.UUID | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer for an error. Details that would make it too large are left out, then the message is cut."""
    kept = dict(headers or {})
    if status in {429, 503}:
        kept.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    request_id = request_id_of(request)
    for said, more in ((message, dict(details or {})), (message, {}), (message[:200], {})):
        body = ErrorBody(
            code=code, message=said, details=more, job_id=str(job_id) if job_id else None, request_id=request_id
        )
        response = JSONResponse(ErrorEnvelope(error=body).model_dump(), status_code=status, headers=kept)
        if len(response.body) < MOST_BYTES:
            return response
    raise RuntimeError("an error's message of 200 characters does not fit")


async def _on_domain_error(request: Request, error: DreamForgeError) -> JSONResponse:
    status = STATUS_OF_ERROR.get(type(error))
    if status is None:
        return await _on_bug(request, error)
    if status >= 500:
        log.warning("request failed", extra={"code": error.code, "request_id": request_id_of(request)})
    details = dict(error.details)
    if "errors" in details:
        details["errors"] = _bounded(details["errors"])
    return envelope(request, status, error.code, error.message, details=details, job_id=error.job_id)


async def _on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    parts = error.errors()
    if any(part["type"] == "json_invalid" for part in parts):
        return envelope(request, 400, InvalidRequest.code, BAD_JSON)
    described = _bounded([_described(part) for part in parts[:_MOST_ERRORS]])
    return envelope(request, 422, InvalidRequest.code, _INVALID, details={"errors": described})


async def _on_http_error(request: Request, error: HTTPException) -> JSONResponse:
    status = error.status_code
    code, usual = HTTP_ERRORS.get(status, (InvalidRequest.code, _INVALID))
    ours = isinstance(error, HttpError)
    headers = dict(error.headers or {})
    if status == 405:
        # Files have a mount, which matches any method, and say themselves what they take.
        headers["Allow"] = _allowed(request) or headers.get("Allow", "")
    if status in {408, 413}:
        # The rest of the body may have no end.
        headers["Connection"] = "close"
    return envelope(
        request,
        status,
        code,
        error.detail if ours else usual,
        details=error.details if ours else {},
        headers=headers,
    )


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("bug", exc_info=error, extra={"request_id": request_id_of(request)})
    # Starlette answers bugs outside every middleware, so the header is set here.
    adds_header = not request.app.state.api.rules.server_adds_request_id
    headers = {HEADER: request_id_of(request)} if adds_header else {}
    return envelope(request, 500, DreamForgeError.code, _BUG, headers=headers)


def _allowed(request: Request) -> str:
    """Every method of the address. Starlette names those of the first route that it has there."""
    scope = dict(request.scope)
    return ", ".join(
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    )


def _bounded(described: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """As many as fit, with room for the envelope about them."""
    room, kept = MOST_BYTES - 1024, list[Mapping[str, str]]()
    for part in described:
        room -= len(json.dumps(part, ensure_ascii=False).encode()) + 1
        if room < 0:
            break
        kept.append(part)
    return kept


def _described(part: Mapping[str, Any]) -> dict[str, str]:
    # Only pydantic's own words: its `input` is the caller's, whole. The key of an unknown field is the caller's too.
    location = [str(step)[:64] for step in part["loc"] if step != "body"]
    return {"path": ".".join(location)[:200] or "body", "message": str(part["msg"])[:200]}
