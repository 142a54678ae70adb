"""What a user does with a generated client: `python use.py BASE_URL`, where `generated` can be imported.

Prints what it was told as JSON. Runs in an environment of its own, with nothing of ours in it.
"""

# The package is made by the test, in another environment.
# pyright: basic, reportMissingImports=false

import hashlib
import json
import re
import sys
from http import HTTPStatus
from typing import Any

from generated import Client
from generated.api.artifacts import get_artifact, get_artifact_content, head_artifact_content
from generated.api.events import get_job_logs, get_job_progress, stream_job_progress
from generated.api.health import get_liveness, get_metrics, get_readiness
from generated.api.jobs import cancel_job, create_job, delete_job, get_job, list_artifacts, list_jobs, retry_job
from generated.api.models import download_model, get_model, list_models
from generated.models import CreateJob, CreateJobMetadata, CreateJobParams, DownloadModel, ErrorEnvelope, JobStatus


def main(base_url: str) -> None:
    """Go through every operation."""
    client = Client(base_url=base_url, raise_on_unexpected_status=True, timeout=90)
    told = {**_health(client), **_models(client), **_job(client), **_download(client), **_refused(client)}
    json.dump(told, sys.stdout)


def _health(client: Client) -> dict[str, object]:
    return {
        "live": get_liveness.sync(client=client).status,
        "ready": get_readiness.sync(client=client).status,
        "metrics": "dreamforge_database_up 1" in get_metrics.sync(client=client),
    }


def _models(client: Client) -> dict[str, object]:
    (model,) = list_models.sync(client=client, installed=True).items
    known = get_model.sync_detailed(str(model.id), client=client)
    again = get_model.sync_detailed(str(model.id), client=client, if_none_match=known.headers["etag"])
    return {
        "model": known.parsed.name,
        "fields": sorted(known.parsed.parameters_schema["properties"]),
        "unchanged": again.status_code == HTTPStatus.NOT_MODIFIED,
    }


def _job(client: Client) -> dict[str, object]:
    body = CreateJob(
        type_="generate",
        params=CreateJobParams.from_dict({"prompt": "a lighthouse", "seed": 4, "steps": 2}),
        count=2,
        metadata=CreateJobMetadata.from_dict({"for": "a friend"}),
    )
    job = create_job.sync(client=client, body=body, idempotency_key="of-a-generated-client", prefer="wait=60")
    replayed = create_job.sync(client=client, body=body, idempotency_key="of-a-generated-client")
    job_id = str(job.id)
    return {
        "status": job.status,
        "metadata": job.metadata.to_dict(),
        "replayed": replayed.id == job.id,
        "listed": job.id in [one.id for one in list_jobs.sync(client=client, status=[JobStatus.SUCCEEDED]).items],
        "same": get_job.sync(job_id, client=client) == job,
        "seeds": _seeds(client, job_id),
        **_events(client, job_id),
        "retried": _code(retry_job.sync(job_id, client=client)),
        "cancelled": cancel_job.sync(job_id, client=client).status,
        "deleted": delete_job.sync_detailed(job_id, client=client).status_code,
        "gone": _code(get_job.sync(job_id, client=client)),
    }


def _download(client: Client) -> dict[str, object]:
    # Port 9 of loopback is nobody's: it waits, or is tried again, until it is cancelled.
    job = download_model.sync(
        client=client, body=DownloadModel(source=f"https://127.0.0.1:9/x.safetensors#sha256={'ab' * 32}")
    )
    cancelled = cancel_job.sync(str(job.id), client=client)
    wrong = download_model.sync(client=client, body=DownloadModel(source="file:/etc/passwd"))
    return {
        "download": [job.type_, job.params["source"][:6], cancelled.status in {"cancelled", "cancelling"}],
        "no_source": _code(wrong),
    }


def _seeds(client: Client, job_id: str) -> list[int]:
    first = list_artifacts.sync(job_id, client=client, limit=1)
    second = list_artifacts.sync(job_id, client=client, limit=1, cursor=first.next_cursor)
    images = [*first.items, *second.items]
    for image in images:
        image_id = str(image.id)
        whole = get_artifact_content.sync_detailed(image_id, client=_for_bytes(client), redirect=False)
        assert f"sha256:{hashlib.sha256(whole.content).hexdigest()}" == image.checksum
        head = head_artifact_content.sync_detailed(image_id, client=client)
        assert int(head.headers["content-length"]) == image.size_bytes
        assert get_artifact.sync(image_id, client=client).checksum == image.checksum
    return [image.seed for image in images]


def _events(client: Client, job_id: str) -> dict[str, object]:
    log = get_job_logs.sync_detailed(job_id, client=_for_bytes(client), follow=True).content
    stream = stream_job_progress.sync(job_id, client=client)
    progress = get_job_progress.sync(job_id, client=client)
    return {
        "log": [json.loads(line)["seq"] for line in log.splitlines() if line],
        "stream": [int(seq) for seq in re.findall(r"^id: (\d+)$", stream, re.MULTILINE)],
        "last_seq": progress.last_seq,
        "fraction": progress.fraction,
    }


def _for_bytes(client: Client) -> Client:
    """For answers of a type that the generator does not know, PNG and lines of JSON: to it none is expected."""
    return Client(base_url=client._base_url, timeout=90)


def _refused(client: Client) -> dict[str, object]:
    wrong = CreateJob(type_="generate", params=CreateJobParams.from_dict({"prompt": "x", "width": 7}))
    return {"refused": _code(create_job.sync(client=client, body=wrong))}


def _code(answer: Any) -> str:
    """The code of an error; fails for anything else."""
    assert isinstance(answer, ErrorEnvelope), answer
    return answer.error.code


if __name__ == "__main__":
    main(sys.argv[1])
