"""An example of every body and answer, for the OpenAPI document. A test holds them against their schemas."""

from typing import Any

from dreamforge.models.descriptor import SizeRange, sdxl_schema

_JOB = "01936b2e-7c1a-7b5e-9d0c-3f6a1f0b2c3d"
_STEP = "01936b2e-7c1a-7b60-8a11-5a1d7f4e9b21"
_ARTIFACT = "01936b2e-9f42-7d0a-b3c4-6d2e8a7c1f55"
_MODEL = "01936a90-1111-7c3d-8e2f-0a9b8c7d6e5f"
_REQUEST = "8f14e45fceea467a9b1c2d3e4f5a6b7c"
_CREATED, _STARTED, _LATER = "2026-11-25T09:30:00.120394Z", "2026-11-25T09:30:02.511Z", "2026-11-25T09:30:14.803Z"

_PARAMS = {
    "prompt": "a lighthouse at dawn",
    "negative_prompt": "",
    "width": 1024,
    "height": 1024,
    "steps": 30,
    "guidance_scale": 6.5,
    "scheduler": "dpmpp_2m_karras",
    "seed": 7,
    "format": "png",
    "quality": 90,
    "preset": "balanced",
}
_FAILURE = {
    "code": "oom",
    "message": "The GPU has too little memory for this call.",
    "details": {},
    "suggestions": ["Make the image smaller."],
}
_EXAMPLE_JOB = {
    "id": _JOB,
    "type": "generate",
    "status": "running",
    "model_id": _MODEL,
    "count": 2,
    "priority": "normal",
    "params": _PARAMS,
    "options": {"oom_policy": "fail", "start_timeout": None, "step_timeout": None, "preview_every": None},
    "metadata": {"album": "harbour"},
    "created_at": _CREATED,
    "updated_at": _LATER,
    "started_at": _STARTED,
    "finished_at": None,
    "expires_at": None,
    "progress": {
        "fraction": 0.62,
        "items_done": 1,
        "items_total": 2,
        "stage": "denoise",
        "queue_position": None,
        "eta_seconds": None,
    },
    "steps": [
        {
            "id": _STEP,
            "name": "generate",
            "status": "running",
            "attempt": 1,
            "started_at": _STARTED,
            "finished_at": None,
            "error": None,
        }
    ],
    "error": None,
    "links": {
        "self": f"/v1/jobs/{_JOB}",
        "artifacts": f"/v1/jobs/{_JOB}/artifacts",
        "logs": f"/v1/jobs/{_JOB}/logs",
        "progress": f"/v1/jobs/{_JOB}/progress",
        "stream": f"/v1/jobs/{_JOB}/progress/stream",
        "cancel": f"/v1/jobs/{_JOB}/cancel",
    },
}
_EXAMPLE_DOWNLOAD = {
    **_EXAMPLE_JOB,
    "type": "model_download",
    "model_id": None,
    "count": 1,
    "params": {
        "source": "civitai:277058@1920523",
        "name": None,
        "version": None,
        "kind": None,
        "default": None,
        "local_only": False,
    },
    "options": {},
    "metadata": {},
    "progress": {
        "fraction": 0.43,
        "items_done": 0,
        "items_total": 1,
        "stage": "download",
        "queue_position": None,
        "eta_seconds": None,
    },
    "steps": [
        {
            "id": _STEP,
            "name": "download",
            "status": "running",
            "attempt": 1,
            "started_at": _STARTED,
            "finished_at": None,
            "error": None,
        }
    ],
}
_EXAMPLE_ARTIFACT = {
    "id": _ARTIFACT,
    "job_id": _JOB,
    "step_id": _STEP,
    "item_index": 0,
    "format": "png",
    "width": 1024,
    "height": 1024,
    "seed": 7,
    "size_bytes": 1402331,
    "checksum": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "created_at": _LATER,
    "expires_at": None,
    "url": "https://images.example.org/dreamforge/…?X-Amz-Signature=…",
    "url_expires_at": "2026-11-25T10:30:14.803Z",
    "metadata": {"attempt": 1},
}
_EXAMPLE_MODEL = {
    "id": _MODEL,
    "name": "sdxl-tiny",
    "kind": "sdxl",
    "version": "1",
    "installed": True,
    "enabled": True,
    "default": True,
    "checkpoint_hash": "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8",
    "source_uri": "builtin:sdxl-tiny",
    "capabilities": ["generate"],
    "parameters_schema": sdxl_schema(size=SizeRange(least=64, most=512, default=64), default_steps=4),
    "size_bytes": 12_582_912,
    "nodes": [
        {
            "node": "10.0.0.7",
            "node_id": "c1f6a2b7d9e84f0aa1b2c3d4e5f60718293a4b5c6d7e8f9012345678",
            "verified_at": _CREATED,
            "last_used_at": _LATER,
            "online": True,
        }
    ],
    "created_at": _CREATED,
    "updated_at": _CREATED,
    "metadata": {},
}
_LINE = {
    "seq": 17,
    "ts": _LATER,
    "code": "item.progress",
    "job_id": _JOB,
    "step_id": _STEP,
    "attempt": 1,
    "level": "info",
    "payload": {"item_index": 0, "stage": "denoise", "stage_progress": 0.4, "progress": 0.37},
}
_PROGRESS = {"fraction": 0.09, "items_done": 0, "items_total": 4}

EXAMPLES: dict[str, list[Any]] = {
    "CreateJob": [
        {"type": "generate", "params": {"prompt": "a lighthouse at dawn"}},
        {
            "type": "generate",
            "model_id": "sdxl-tiny",
            "count": 2,
            "priority": "high",
            "params": {"prompt": "a lighthouse at dawn", "width": 512, "height": 512, "seed": 7},
            "options": {"step_timeout": 600},
            "metadata": {"album": "harbour"},
        },
    ],
    "DownloadModel": [
        {"source": "civitai:277058@1920523"},
        {"source": "hf:stabilityai/stable-diffusion-xl-base-1.0", "name": "sdxl-base", "default": True},
    ],
    "Job": [_EXAMPLE_JOB, _EXAMPLE_DOWNLOAD],
    "JobList": [{"items": [_EXAMPLE_JOB], "next_cursor": None}],
    "JobError": [_FAILURE],
    "Artifact": [_EXAMPLE_ARTIFACT],
    "ArtifactList": [{"items": [_EXAMPLE_ARTIFACT], "next_cursor": None}],
    "Model": [_EXAMPLE_MODEL],
    "ModelList": [{"items": [_EXAMPLE_MODEL], "next_cursor": None}],
    "Progress": [
        {
            "job_id": _JOB,
            "status": "running",
            "fraction": 0.31,
            "items_done": 1,
            "items_total": 4,
            "stage": "denoise",
            "eta_seconds": 41.5,
            "last_seq": 61,
            "items": [
                {
                    "item_index": 0,
                    "step": "generate",
                    "status": "succeeded",
                    "fraction": 1.0,
                    "stage": "save",
                    "seed": 7,
                    "artifact_id": _ARTIFACT,
                }
            ],
        }
    ],
    "LogLine": [_LINE],
    "StreamEvent": [{**_LINE, "progress": _PROGRESS}],
    "Liveness": [{"status": "ok"}],
    "Readiness": [
        {
            "status": "degraded",
            "checks": {
                "postgres": {"ok": True, "required": True, "ms": 3, "message": None},
                "gpu_nodes": {"ok": False, "required": False, "ms": 4, "message": "No GPU node is up."},
            },
        }
    ],
}
"""By the name of the schema."""

_METRICS = """\
# HELP dreamforge_jobs Stored jobs by status.
# TYPE dreamforge_jobs gauge
dreamforge_jobs{status="queued"} 3.0
"""
TEXTS: dict[str, str] = {"text/plain": _METRICS}
"""By media type, of answers that are no JSON."""

_INVALID: dict[str, Any] = {"errors": [{"path": "params.width", "message": "must be a multiple of 8"}]}
ERRORS: dict[int, tuple[str, str, dict[str, Any]]] = {
    400: ("invalid_request", "The body is not valid JSON.", {}),
    403: ("forbidden", "The service does not answer to this host name.", {}),
    404: ("not_found", "There is no such job.", {}),
    405: ("method_not_allowed", "This address does not take this method.", {}),
    408: ("request_timeout", "The request did not arrive in time.", {}),
    409: ("conflict", "The job is still running.", {}),
    413: ("body_too_large", "The request body is larger than 1048576 bytes.", {}),
    415: ("unsupported_media_type", "Send the body as application/json.", {}),
    422: ("invalid_request", "The parameters do not fit the model.", _INVALID),
    429: ("queue_full", "Too many jobs are waiting; try again later.", {}),
    500: ("internal", "Something went wrong inside the service.", {}),
    503: ("database_unavailable", "The database cannot be reached; try again in a few seconds.", {}),
}
"""Code, message and details of an error of each status."""


def error_example(status: int) -> dict[str, Any]:
    """An envelope for the status."""
    code, message, details = ERRORS.get(status, ERRORS[400])
    job_id = _JOB if status == 409 else None
    error = {"code": code, "message": message, "details": details, "job_id": job_id, "request_id": _REQUEST}
    return {"error": error}
