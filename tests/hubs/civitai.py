"""Civitai as its public REST API answers.

    with FakeCivitai() as hub:
        version = hub.add(HubVersion(1920523, 277058, [HubFile("tiny.safetensors", path)], base_model="SDXL 1.0"))
        source = CivitaiSource(endpoint=hub.endpoint, token=None)

The shapes are those of https://developer.civitai.com/site/reference/model-versions and /site/guide/errors, and of
src/pages/api/v1/model-versions/[id].ts and src/pages/api/download/models/[modelVersionId].ts in civitai/civitai:
whoever must log in is sent to a page, or told `{"error": "Unauthorized"}` where the request says that it is of JSON.
What goes wrong with it: HEAD is answered 401, a User-Agent of Python's libraries 403, an Authorization header at the
storage 400 (modal-comfyui PR 19, vast-ai/base-image PR 215), and a `downloadUrl` with words in its query may be 404
where `?fileId=` is not (comfyui-mcp issue 1300).
"""

import hashlib
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from tests.hubs.hosting import HostedFile
from tests.hubs.hub_server import Answer, HubServer, Question, of_json

_LIBRARIES = re.compile(r"python-|Python/|aiohttp|urllib|httpx", re.IGNORECASE)
_LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Civitai | Log in</title></head><body>Log in</body></html>"


@dataclass
class HubFile:
    """A file of a version. ``format``: `SafeTensor`, `PickleTensor`, …; ``is_primary``: the one that is downloaded."""

    name: str
    body: bytes | Path
    type: str = "Model"
    format: str = "SafeTensor"
    size: str = "pruned"
    precision: str = "fp16"
    is_primary: bool = True
    id: int = 0
    hash: str | None = "its own"
    size_kb: float | None = None

    @property
    def content(self) -> bytes:
        """Its bytes."""
        return self.body if isinstance(self.body, bytes) else self.body.read_bytes()


@dataclass
class HubVersion:
    """A version of a model. ``needs_token``: its files are for those who are logged in."""

    id: int
    model_id: int
    files: list[HubFile]
    name: str = "v1.0"
    model_name: str = "Tiny XL"
    type: str = "Checkpoint"
    base_model: str = "SDXL 1.0"
    base_model_type: str | None = "Standard"
    availability: str = "Public"
    usage_control: str = "Download"
    early_access_ends: str | None = None
    buyers: set[str] = field(default_factory=set[str])
    needs_token: bool = False
    is_published: bool = True
    words_are_lost: bool = False
    stored: dict[int, HostedFile] = field(default_factory=dict[int, HostedFile])


class FakeCivitai(HubServer):
    """The hub. ``tokens``: those that it knows. ``gives_pages``: a page of 200 comes in place of a file."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: dict[int, HubVersion] = {}
        self.tokens: set[str] = set()
        self.gives_pages = False

    def add(self, version: HubVersion) -> HubVersion:
        """Add a version, newer than all before it."""
        for number, file in enumerate(version.files):
            file.id = file.id or version.id * 10 + number
            version.stored[file.id] = self.storage.add(f"model/{version.id}/{file.id}/{file.name}", file.body)
        self.versions[version.id] = version
        return version

    def answer(self, question: Question) -> Answer:
        if question.method == "HEAD":
            return Answer(401)
        if _LIBRARIES.search(question.headers.get("user-agent", "python-")):
            return Answer(403, b"error code: 1010", {"Content-Type": "text/plain; charset=UTF-8"})
        match question.path.strip("/").split("/"):
            case ["api", "v1", "model-versions", number]:
                version = self.versions.get(int(number))
                is_there = version is not None and version.is_published
                return of_json(self.describe(version)) if version and is_there else _error(404, "Model not found")
            case ["api", "v1", "models", number]:
                return self._model(int(number))
            case ["api", "download", "models", number]:
                return self._download(question, self.versions.get(int(number)))
            case ["login"]:
                return Answer(200, _LOGIN_PAGE, {"Content-Type": "text/html; charset=utf-8"})
            case _:
                return _error(404, "Not found")

    def describe(self, version: HubVersion) -> dict[str, object]:
        """What the hub says of a version, as the object that JSON is made of."""
        ecosystem = "sdxl" if not version.base_model.startswith("SD ") else "sd1"
        return {
            "id": version.id,
            "modelId": version.model_id,
            "name": version.name,
            "description": None,
            "baseModel": version.base_model,
            "baseModelType": version.base_model_type,
            "air": f"urn:air:{ecosystem}:{version.type.lower()}:civitai:{version.model_id}@{version.id}",
            "status": "Published",
            "availability": version.availability,
            "nsfwLevel": 1,
            "createdAt": "2026-01-18T08:55:00.000Z",
            "updatedAt": "2026-01-18T09:16:12.062Z",
            "publishedAt": "2026-01-18T09:16:12.062Z",
            "uploadType": "Created",
            "usageControl": version.usage_control,
            "trainedWords": ["tiny style"],
            "earlyAccessConfig": None,
            "earlyAccessEndsAt": version.early_access_ends,
            "trainingStatus": None,
            "trainingDetails": None,
            "stats": {"downloadCount": 215627, "thumbsUpCount": 13828, "thumbsDownCount": 22},
            "model": {"name": version.model_name, "type": version.type, "nsfw": False, "poi": False, "minor": False},
            "files": [self._file(version, file) for file in version.files],
            "images": [],
            "downloadUrl": f"{self.endpoint}/api/download/models/{version.id}",
        }

    def _file(self, version: HubVersion, file: HubFile) -> dict[str, object]:
        words = {"type": file.type, "format": file.format, "size": file.size, "fp": file.precision}
        query = "" if file.is_primary and not version.words_are_lost else f"?{urlencode(words)}"
        sha256 = hashlib.sha256(file.content).hexdigest().upper() if file.hash == "its own" else file.hash
        return {
            "id": file.id,
            "name": file.name,
            "type": file.type,
            "sizeKB": len(file.content) / 1024 if file.size_kb is None else file.size_kb,
            "metadata": {"format": file.format, "size": file.size, "fp": file.precision},
            "pickleScanResult": "Success",
            "pickleScanMessage": "No Pickle imports",
            "virusScanResult": "Success",
            "virusScanMessage": None,
            "scannedAt": "2026-01-18T09:00:00.000Z",
            "hashes": {"CRC32": f"{zlib.crc32(file.content):08X}"}
            | ({"AutoV2": sha256[:10], "SHA256": sha256} if sha256 else {}),
            "downloadUrl": f"{self.endpoint}/api/download/models/{version.id}{query}",
            **({"primary": True} if file.is_primary else {}),
        }

    def _model(self, number: int) -> Answer:
        versions = [version for version in reversed(self.versions.values()) if version.model_id == number]
        if not versions:
            return _error(404, f"No model with id {number}")
        newest = versions[0]
        return of_json(
            {
                "id": number,
                "name": newest.model_name,
                "description": "<p>Tiny.</p>",
                "type": newest.type,
                "nsfw": False,
                "availability": newest.availability,
                "tags": ["base model"],
                "creator": {"username": "someone", "image": None},
                "modelVersions": [
                    {
                        "index": index,
                        **{
                            name: value
                            for name, value in self.describe(version).items()
                            if name not in {"model", "modelId", "air", "status"}
                        },
                        "status": "Published" if version.is_published else "Draft",
                    }
                    for index, version in enumerate(versions)
                ],
            }
        )

    def _download(self, question: Question, version: HubVersion | None) -> Answer:
        if version is None or not version.is_published:
            return _error(404, "Model not found")
        file = _file_asked_for(question, version)
        if file is None:
            return _error(404, "Model file not found")
        is_known = question.token in self.tokens
        speaks_json = question.headers.get("content-type") == "application/json"
        if self.gives_pages:
            return Answer(200, _LOGIN_PAGE, {"Content-Type": "text/html; charset=utf-8"})
        if version.needs_token and not is_known:
            to = f"/login?returnUrl=/models/{version.model_id}&reason=download-auth"
            return _error(401, "Unauthorized") if speaks_json else Answer(307, headers={"Location": to})
        if version.early_access_ends and question.token not in version.buyers:
            said = {"error": "Early Access", "deadline": version.early_access_ends}
            return of_json(said, 403) if speaks_json else Answer(307, headers={"Location": "/pricing"})
        return Answer(307, headers={"Location": version.stored[file.id].url})


def _file_asked_for(question: Question, version: HubVersion) -> HubFile | None:
    if "fileId" in question.query:
        return next((file for file in version.files if str(file.id) == question.query["fileId"]), None)
    if not question.query:
        return next((file for file in version.files if file.is_primary), None)
    if version.words_are_lost:
        return None
    asked = {question.query.get(name) for name in ("type", "format", "size", "fp")}
    return next((file for file in version.files if {file.type, file.format, file.size, file.precision} == asked), None)


def _error(status: int, words: str) -> Answer:
    return of_json({"error": words}, status)
