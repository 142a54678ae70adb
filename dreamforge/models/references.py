"""How a person writes where a model comes from, read in this one place.

    hf:org/repo[@revision][:file]        Hugging Face; the revision is a branch, a tag or a commit
    civitai:model[@version[+file]]       Civitai, by its numbers; or its AIR, civitai:urn:air:sdxl:lora:civitai:1@2
    https://host/model.safetensors#sha256=…
    file:/path                           a file or folder of this machine
    scheme:…                             a source that a package added

>>> parse("hf:stabilityai/sdxl-vae@main:sdxl_vae.safetensors")
HuggingFaceReference(repo='stabilityai/sdxl-vae', revision='main', file='sdxl_vae.safetensors')
>>> str(parse("civitai:urn:air:sdxl:checkpoint:civitai:277058@1920523"))
'civitai:277058@1920523'

No error repeats what it was given: people paste tokens too.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

from dreamforge.errors import InvalidRequest
from dreamforge.models.file_names import fault_of
from dreamforge.models.web_addresses import reference_for

LONGEST_REFERENCE = 2048

EXPECTED = {
    "hf": "hf:org/repo, hf:org/repo@revision or hf:org/repo@revision:file.safetensors",
    "civitai": "civitai:model@version with the two numbers, or civitai:urn:air:sdxl:checkpoint:civitai:model@version",
    "https": "https://host/path/file.safetensors#sha256= and the 64 digits of the file's hash",
    "file": "file:/absolute/path",
}
"""How the built-in sources' references are written, by scheme."""

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
# A revision is a name of git, so there is no colon in it.
_HUGGING_FACE = re.compile(
    r"(?P<repo>[^/@:]+/[^/@:]+)(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?(?::(?P<file>.+))?", re.DOTALL
)
_LONGEST_REPO = 96
_NUMBER = r"[1-9][0-9]{0,17}"
_CIVITAI = re.compile(rf"(?P<model>{_NUMBER})(?:@(?P<version>{_NUMBER})(?:\+(?P<file>{_NUMBER}))?)?")
# https://developer.civitai.com/site/guide/air: urn:air:{ecosystem}:{type}:{source}:{id}[@{version}][+{file}][.{format}]
_AIR_FORMAT = re.compile(r"\.\w+")
_SHA256 = re.compile(r"sha256[=:-](?P<digest>[0-9A-Fa-f]{64})")
# Whatever the registry, a job or a log keeps of an address can be read by others.
_SECRETS = re.compile(r"token|secret|signature|password|credential|api_?key|^(key|sig|auth)$", re.IGNORECASE)


@dataclass(frozen=True)
class HuggingFaceReference:
    """A repository of Hugging Face, or one file of it. ``revision`` is None for its main branch."""

    repo: str
    revision: str | None = None
    file: str | None = None
    scheme: ClassVar[str] = "hf"

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}{f':{self.file}' if self.file else ''}"


@dataclass(frozen=True)
class CivitaiReference:
    """A model of Civitai by its numbers. ``version`` is None for its newest, ``file`` for the version's main one."""

    model: int
    version: int | None = None
    file: int | None = None
    scheme: ClassVar[str] = "civitai"

    def __str__(self) -> str:
        version = f"@{self.version}" if self.version else ""
        return f"civitai:{self.model}{version}{f'+{self.file}' if self.file else ''}"


@dataclass(frozen=True)
class UrlReference:
    """A file of the web, which nobody but its hash vouches for. `http` is for this machine's own servers."""

    url: str
    sha256: str
    scheme: ClassVar[str] = "https"

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}"


@dataclass(frozen=True)
class FileReference:
    """A file or folder of the machine that reads this; the path is absolute."""

    path: PurePosixPath
    scheme: ClassVar[str] = "file"

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True)
class OtherReference:
    """A reference of a source that a package may have added. ``text``: all of it, with the scheme."""

    scheme: str
    text: str

    def __str__(self) -> str:
        return self.text


Reference = HuggingFaceReference | CivitaiReference | UrlReference | FileReference | OtherReference


def parse(text: str) -> Reference:
    """The reference that was written. Raises ``InvalidRequest``, which says how it is to be written."""
    text = text.strip()
    if len(text) > LONGEST_REFERENCE or not text.isprintable():
        raise InvalidRequest(f"A model's source has {LONGEST_REFERENCE} characters at most, all of them printable.")
    if advice := reference_for(text):
        raise InvalidRequest(f"Write that source as {advice}.")
    if text.lower().startswith("urn:air:"):
        text = f"civitai:{text}"
    written = _SCHEME.fullmatch(text)
    if written is None:
        raise InvalidRequest(f"That is no model's source. {expected()}")
    scheme, rest = written[1].lower(), written[2]
    if read := _READERS.get(scheme):
        return read(rest)
    return OtherReference(scheme=scheme, text=f"{scheme}:{rest}")


def expected(scheme: str | None = None) -> str:
    """A sentence on how references are written, those of one scheme or all."""
    ways = [EXPECTED[scheme]] if scheme else list(EXPECTED.values())
    return f"Expected {'; or '.join(ways)}."


def _hugging_face(rest: str) -> HuggingFaceReference:
    found = _HUGGING_FACE.fullmatch(rest)
    if found is None or not _is_repo(found["repo"]):
        raise _unlike("hf", "does not name a repository of Hugging Face")
    if found["revision"] and ".." in found["revision"]:
        raise _unlike("hf", "does not name a revision")
    if found["file"] and (fault := fault_of(found["file"])):
        raise InvalidRequest(f"The file that hf: is to take from the repository {fault}. {expected('hf')}")
    return HuggingFaceReference(**found.groupdict())


def _is_repo(repo: str) -> bool:
    # As huggingface_hub's validate_repo_id has it, but for names without an owner.
    parts = repo.split("/")
    return len(repo) <= _LONGEST_REPO and all(re.fullmatch(_NAME, part) for part in parts) and repo[-4:] != ".git"


def _civitai(rest: str) -> CivitaiReference:
    found = _CIVITAI.fullmatch(_numbers_of_air(rest) if ":" in rest else rest)
    if found is None:
        raise _unlike("civitai", "does not name a model by its number")
    return CivitaiReference(**{part: int(number) for part, number in found.groupdict().items() if number})


def _numbers_of_air(air: str) -> str:
    sources = [part.lower() for part in air.split(":")]
    if "huggingface" in sources:
        raise InvalidRequest(f"That is a model of Hugging Face. {expected('hf')}")
    if "civitai" not in sources[:-1]:
        raise _unlike("civitai", "is not of Civitai")
    # Behind them there may be a layer's name, in AIRs of old.
    return _AIR_FORMAT.sub("", sources[sources.index("civitai") + 1])


def _https(rest: str) -> UrlReference:
    return _url(f"https:{rest}")


def _http(rest: str) -> UrlReference:
    return _url(f"http:{rest}")


def _url(text: str) -> UrlReference:
    url, _, fragment = text.partition("#")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _unlike("https", "is no address") from error
    if not parts.hostname or port == 0 or "\\" in url or " " in url:
        raise _unlike("https", "is no address")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise _unlike("https", "is not of https: nobody could tell who answered")
    if parts.username is not None or any(_SECRETS.search(name) for name, _ in parse_qsl(parts.query)):
        words = "has a password or a token in it, which would be kept and shown"
        raise InvalidRequest(f"That address {words}. Download the file by other means, then give it as file:/path.")
    digest = _SHA256.fullmatch(fragment)
    if digest is None:
        raise _unlike("https", "has no hash to tell the file by")
    return UrlReference(url=url, sha256=digest["digest"].lower())


def _file(rest: str) -> FileReference:
    # With two slashes it is a URI (RFC 8089), as other programs write them; with one, a path as it stands.
    if rest.startswith("//"):
        rest = unquote(rest.removeprefix("//").removeprefix("localhost"), errors="strict")
    path = PurePosixPath(rest)
    if not rest.startswith("/") or rest.startswith("//") or ".." in path.parts or not rest.isprintable():
        raise _unlike("file", "is no absolute path of this machine")
    return FileReference(path)


def _unlike(scheme: str, words: str) -> InvalidRequest:
    return InvalidRequest(f"That source {words}. {expected(scheme)}", details={"expected": EXPECTED[scheme]})


_READERS: dict[str, Callable[[str], Reference]] = {
    "hf": _hugging_face,
    "civitai": _civitai,
    "https": _https,
    "http": _http,
    "file": _file,
}
