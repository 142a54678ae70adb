"""One envelope for every error, and the one table from code to HTTP status."""

import itertools
import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from dreamforge.api.request_id import HEADER, request_id_of
from dreamforge.errors import DreamForgeError, InvalidRequest

log = logging.getLogger(__name__)

STATUS_OF_CODE: dict[str, int] = {
    "invalid_request": 422,
    "unknown_model": 422,
    "model_not_installed": 422,
    "model_disabled": 422,
    "model_incompatible": 422,
    "not_found": 404,
    "conflict": 409,
    "idempotency_key_reused": 422,
    "body_too_large": 413,
    "database_unavailable": 503,
    "queue_unavailable": 503,
    "storage_unavailable": 503,
    "internal": 500,
}
_CODE_OF_STATUS = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}
_MESSAGE_OF_STATUS = {
    400: "The body is not valid JSON.",
    404: "There is nothing at this address.",
    405: "This address does not take this method.",
    413: "The request body is too large.",
    415: "Send the body as application/json.",
}
_RETRY_AFTER_SECONDS = 5
_MOST_ERRORS = 20
_MOST_BYTES = 3000
"""Of an error's details; whatever is about it, a body stays under 4 KB."""


class ErrorBody(BaseModel):
    """What went wrong: a stable code, a sentence, and what the code says more about."""

    code: str = Field(examples=["unknown_model"])
    message: str = Field(examples=["No model 'sdxl-base'. Installed: sdxl-tiny."])
    details: dict[str, Any] = Field(default_factory=dict)
    job_id: str | None = None
    request_id: str


class ErrorEnvelope(BaseModel):
    """Every error the service answers with."""

    error: ErrorBody


class HttpError(HTTPException):
    """An error of HTTP itself, with its details: what is wrong with the body or a header."""

    def __init__(self, status_code: int, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(status_code, message)
        self.details = dict(details or {})


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for these statuses."""
    return {status: {"model": ErrorEnvelope} for status in statuses}


def install_error_handlers(app: FastAPI) -> None:
    """Have every error of the application answered in the envelope."""

    @app.exception_handler(DreamForgeError)
    async def on_domain_error(request: Request, error: DreamForgeError) -> JSONResponse:
        status = STATUS_OF_CODE.get(error.code, 500)
        if status >= 500:
            log.warning("request failed", extra={"code": error.code, "request_id": request_id_of(request)})
        return _envelope(request, status, error.code, error.message, error.details)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        if any(part["type"] == "json_invalid" for part in error.errors()):
            return _envelope(request, 400, InvalidRequest.code, _MESSAGE_OF_STATUS[400], {})
        details = {"errors": _bounded([_described(part) for part in error.errors()[:_MOST_ERRORS]])}
        return _envelope(request, 422, InvalidRequest.code, "The request is not valid.", details)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        status = error.status_code
        ours = isinstance(error, HttpError)
        message = error.detail if ours else _MESSAGE_OF_STATUS.get(status, error.detail)
        details = error.details if ours else {}
        return _envelope(
            request, status, _CODE_OF_STATUS.get(status, "invalid_request"), message, details, error.headers
        )

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.error("bug", exc_info=error, extra={"request_id": request_id_of(request)})
        # Starlette answers bugs outside every middleware, so the header is added here.
        adds_header = not request.app.state.api.rules.server_adds_request_id
        headers = {HEADER: request_id_of(request)} if adds_header else {}
        return _envelope(request, 500, DreamForgeError.code, "Something went wrong inside the service.", {}, headers)


def _envelope(
    request: Request,
    status: int,
    code: str,
    message: str,
    details: dict[str, Any],
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = ErrorBody(code=code, message=message, details=details, request_id=request_id_of(request))
    kept = dict(headers or {})
    if status == 503:
        kept["Retry-After"] = str(_RETRY_AFTER_SECONDS)
    return JSONResponse(ErrorEnvelope(error=body).model_dump(), status_code=status, headers=kept)


def _bounded(errors: list[dict[str, str]]) -> list[dict[str, str]]:
    sizes = itertools.accumulate(len(json.dumps(error, ensure_ascii=False).encode()) for error in errors)
    return [error for error, size in zip(errors, sizes, strict=True) if size <= _MOST_BYTES]


def _described(part: Mapping[str, Any]) -> dict[str, str]:
    # Only pydantic's own words: its `input` is the caller's, whole. The key of an unknown field is the caller's too.
    location = [str(step)[:64] for step in part["loc"] if step != "body"]
    return {"path": ".".join(location)[:200], "message": str(part["msg"])[:200]}
