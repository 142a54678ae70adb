"""Hugging Face as its API answers, from a folder on this machine.

    with FakeHuggingFace() as hub:
        repo = hub.add("org/tiny-sdxl", folder)
        source = HuggingFaceSource(endpoint=hub.endpoint, token=None)

The shapes are those that huggingface_hub 2.4 reads: `ModelInfo` and `RepoSibling` in hf_api.py (`GET /api/models/…`
with `?blobs=`), `get_hf_file_metadata` in file_download.py (`X-Repo-Commit`, `X-Linked-Size`, `X-Linked-ETag`),
`hf_raise_for_status` in utils/_http.py (`X-Error-Code`, `X-Error-Message`, `RateLimit`). The sentences of refusals are
those that people report: of gated repositories in huggingface/diffusers issue 4447 and vladmandic/sdnext issue 4043, of
missing ones in huggingface_hub's errors.py. The list of a gated repository's files is open to all
(huggingface/huggingface.js issue 945). Files in LFS are sent on to another host, small ones to another path.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from tests.hubs.hosting import HostedFile
from tests.hubs.hub_server import Answer, HubServer, Question, of_json

_LFS = (".safetensors", ".bin", ".ckpt", ".pt", ".onnx", ".msgpack")
_POINTER_SIZE = 135
BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Commit:
    """The files of one moment. ``stored``: those of them that are in LFS, as the storage has them."""

    id: str
    files: Mapping[str, bytes | Path]
    stored: dict[str, HostedFile]

    def body(self, path: str) -> bytes:
        """A file's bytes."""
        content = self.files[path]
        return content if isinstance(content, bytes) else content.read_bytes()


@dataclass
class Repo:
    """A repository. ``readers``: the tokens that may read its files while it is ``gated`` or ``private``.

    ``branches``: the commit that each stands for now. ``build``: what `config.diffusers._class_name` says.
    """

    id: str
    commits: dict[str, Commit] = field(default_factory=dict[str, Commit])
    branches: dict[str, str] = field(default_factory=dict[str, str])
    build: str | None = None
    gated: Literal["auto", "manual", False] = False
    private: bool = False
    disabled: bool = False
    readers: set[str] = field(default_factory=set[str])

    def at(self, revision: str) -> Commit | None:
        """What a branch or a commit stands for."""
        return self.commits.get(self.branches.get(revision, revision))

    @property
    def head(self) -> Commit:
        """The newest commit of the main branch."""
        return self.commits[self.branches["main"]]


class FakeHuggingFace(HubServer):
    """The hub. ``tokens``: those that it knows. ``moved``: repositories' old names and their new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.tokens: set[str] = set()

    def add(
        self, id: str, content: Path | Mapping[str, bytes | Path], *, build: str | None = None, branch: str = "main"
    ) -> Repo:
        """Add a repository, or a commit to the one there is: the folder's files, or these by their paths."""
        repo = self.repos.setdefault(id, Repo(id))
        repo.build = build or repo.build
        files = _files_of(content) if isinstance(content, Path) else content
        commit = hashlib.sha1(f"{id} {branch} {len(repo.commits)}".encode()).hexdigest()  # noqa: S324 - as git's
        stored = {path: self._store(id, body) for path, body in files.items() if path.endswith(_LFS)}
        repo.commits[commit] = Commit(commit, files, stored)
        repo.branches[branch] = commit
        return repo

    def answer(self, question: Question) -> Answer:
        parts = question.path.strip("/").split("/")
        if question.token is not None and question.token not in self.tokens:
            return _refused(401, None, BAD_TOKEN)
        match parts:
            case ["api", "models", owner, name, *rest] if rest[:1] in ([], ["revision"]):
                return self._info(question, f"{owner}/{name}", "/".join(rest[1:]) or "main")
            case ["api", "resolve-cache", "models", owner, name, commit, *path]:
                return Answer(body=self.repos[f"{owner}/{name}"].commits[commit].body("/".join(path)))
            case [owner, name, "resolve", revision, *path]:
                return self._resolve(question, f"{owner}/{name}", revision, "/".join(path))
            case _:
                return _refused(404, None, "Sorry, we can't find the page you are looking for.")

    def _info(self, question: Question, id: str, revision: str) -> Answer:
        if id in self.moved:
            return Answer(307, headers={"Location": f"/api/models/{self.moved[id]}"})
        repo = self.repos.get(id)
        if repo is None or (repo.private and question.token not in repo.readers):
            return _missing(question)
        if repo.disabled:
            return _refused(403, None, "Access to this resource is disabled.")
        commit = repo.at(revision)
        if commit is None:
            return _refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return of_json(
            {
                "_id": hashlib.sha1(id.encode()).hexdigest()[:24],  # noqa: S324 - a number
                "id": id,
                "modelId": id,
                "author": id.split("/")[0],
                "sha": commit.id,
                "lastModified": "2026-03-05T10:28:08.000Z",
                "createdAt": "2026-01-02T03:04:05.000Z",
                "private": repo.private,
                "gated": repo.gated,
                "disabled": repo.disabled,
                "downloads": 12,
                "likes": 3,
                "library_name": "diffusers",
                "tags": ["diffusers", "safetensors", "region:us"],
                "pipeline_tag": "text-to-image",
                "spaces": [],
                "usedStorage": 0,
                **({"config": {"diffusers": {"_class_name": repo.build}}} if repo.build else {}),
                "siblings": [_sibling(commit, path, blobs="blobs" in question.query) for path in sorted(commit.files)],
            }
        )

    def _resolve(self, question: Question, id: str, revision: str, path: str) -> Answer:
        repo = self.repos.get(id)
        if repo is None or (repo.private and question.token not in repo.readers):
            return _missing(question)
        if repo.gated and question.token not in repo.readers:
            return _gated(question, id)
        commit = repo.at(revision)
        if commit is None:
            return _refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in commit.files:
            return _refused(404, "EntryNotFound", "Entry not found")
        told = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        body = commit.body(path)
        if path not in commit.stored:
            to = f"/api/resolve-cache/models/{id}/{commit.id}/{quote(path)}"
            return Answer(307, headers={**told, "Location": to, "ETag": f'"{_git_sha1(body)}"'})
        linked = {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{_sha256(body)}"'}
        return Answer(302, headers={**told, **linked, "Location": commit.stored[path].url})

    def _store(self, id: str, body: bytes | Path) -> HostedFile:
        content = body if isinstance(body, bytes) else body.read_bytes()
        return self.storage.add(f"{id}/{_sha256(content)}", body)


def _files_of(folder: Path) -> dict[str, bytes | Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def _sibling(commit: Commit, path: str, *, blobs: bool) -> dict[str, object]:
    body = commit.body(path)
    if not blobs:
        return {"rfilename": path}
    if path not in commit.stored:
        return {"rfilename": path, "size": len(body), "blobId": _git_sha1(body)}
    sha256 = _sha256(body)
    pointer = {"sha256": sha256, "size": len(body), "pointerSize": _POINTER_SIZE}
    return {"rfilename": path, "size": len(body), "blobId": _git_sha1(sha256.encode()), "lfs": pointer}


def _missing(question: Question) -> Answer:
    # Whoever does not say who they are is not told whether it is there.
    if question.token is None:
        return _refused(401, None, "Invalid username or password.")
    return _refused(404, "RepoNotFound", "Repository not found")


def _gated(question: Question, id: str) -> Answer:
    if question.token is None:
        words = "You must have access to it and be authenticated to access it. Please log in."
        return _refused(401, "GatedRepo", f"Access to model {id} is restricted. {words}")
    words = f"and you are not in the authorized list. Visit https://huggingface.co/{id} to ask for access."
    return _refused(403, "GatedRepo", f"Access to model {id} is restricted {words}")


def _refused(status: int, code: str | None, message: str) -> Answer:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return of_json({"error": message}, status, headers)


def too_many_requests(seconds: int) -> Answer:
    """As https://huggingface.co/docs/hub/rate-limits has it."""
    headers = {"RateLimit": f'"api";r=0;t={seconds}', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    return of_json({"error": "We had to rate limit you."}, 429, headers)


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # noqa: S324 - git's own
