"""Models of Hugging Face, and of what speaks as it does.

huggingface_hub says what there is; it fetches nothing. Since 2.4 it does not resume in another process, and it never
compares a hash: the files' sha256 (of those in LFS) and git's own sha1 (of the others) come with their list. That list
is asked for with the commit, in one answer: `list_repo_tree`, which has the same, takes no time limit, and sleeps for
as long as the hub says.
"""

import re
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import quote

from huggingface_hub import HfApi

from dreamforge import __version__
from dreamforge.errors import DownloadCorrupt, InvalidRequest, SourceNotFound
from dreamforge.models.file_names import model_name, safe_path
from dreamforge.models.references import EXPECTED, HuggingFaceReference, parse
from dreamforge.models.remote import Location, RemoteFile, RemoteModel
from dreamforge.models.sources.attempts import ask, in_time
from dreamforge.models.sources.huggingface_answers import Asker, meaning_for, unanswered
from dreamforge.models.sources.selection import Offer, Selection, select
from dreamforge.models.sources.source import ModelSource

_SECONDS = 30.0
_LONGEST_ANSWER = 90.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_FILES = 100_000
_COMMIT_DIGITS = 12
_LARGEST_TEXT = 64 * 1024 * 1024
"""Bytes of what is not weights: the largest of SDXL's is a tokenizer of 4 MB."""
_SUFFIX = ".safetensors"
# What files are called everywhere, so that a model is not named after them.
_NO_NAMES = frozenset({"diffusion_pytorch_model", "model", "pytorch_lora_weights"})


class HuggingFaceSource(ModelSource):
    """`hf:org/repo[@revision][:file]`. ``token`` goes to the endpoint's host and no further."""

    scheme: ClassVar[str] = "hf"
    expects: ClassVar[str] = EXPECTED["hf"]

    def __init__(self, *, endpoint: str, token: str | None) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token = token
        # Not None: that would be the token that `hf auth login` left on this machine.
        self._api = HfApi(
            endpoint=self._endpoint, token=token or False, library_name="dreamforge", library_version=__version__
        )

    def resolve(self, reference: str) -> RemoteModel:
        """The repository at the commit that its revision stands for now, and the files of the model in it."""
        read = parse(reference)
        if not isinstance(read, HuggingFaceReference):
            raise InvalidRequest(f"That is nothing of Hugging Face. Expected {self.expects}.")
        info = ask(lambda: self._info(read))
        pinned = _pinned(read, info)
        if pinned.repo != read.repo:
            # It has been moved, and what a redirect leads to may be another revision, or no hashes.
            moved = replace(read, repo=pinned.repo)
            info = ask(lambda: self._info(moved))
            pinned = _pinned(moved, info)
        listed = {file.rfilename: file for file in info.siblings}
        selection = self._select(pinned, listed, info)
        files = tuple(self._file(pinned, listed[path], alone=selection.main is not None) for path in selection.paths)
        if info.gated or info.private:
            ask(lambda: self._check_access(pinned, files[0]))
        main = files[0].path if selection.main is not None else None
        return RemoteModel(
            source_uri=str(pinned),
            name=_name(pinned, main),
            version=str(pinned.revision)[:_COMMIT_DIGITS],
            files=files,
            main=main,
            kind=selection.kind,
            metadata={"huggingface": {"repo": pinned.repo, "revision": pinned.revision, "file": pinned.file}},
        )

    def locate(self, file: RemoteFile) -> Location:
        """The file at the endpoint, which sends on to storage; the token is for the endpoint alone."""
        return Location(file.url, {"Authorization": f"Bearer {self._token}"} if self._token else {})

    def _info(self, read: HuggingFaceReference) -> Any:
        return in_time(
            lambda: self._info_at_leisure(read),
            seconds=_LONGEST_ANSWER,
            late=lambda: unanswered("takes too long to answer"),
        )

    def _info_at_leisure(self, read: HuggingFaceReference) -> Any:
        with meaning_for(self._asker(read)):
            return self._api.model_info(read.repo, revision=read.revision, files_metadata=True, timeout=_SECONDS)

    def _check_access(self, pinned: HuggingFaceReference, file: RemoteFile) -> None:
        """Ask for one file, and not for its bytes: the list of a repository is open where the files are not."""
        with meaning_for(self._asker(pinned)):
            self._api.get_hf_file_metadata(url=file.url, timeout=_SECONDS)

    def _asker(self, read: HuggingFaceReference) -> Asker:
        return Asker(read=read, endpoint=self._endpoint, has_token=self._token is not None)

    def _select(self, pinned: HuggingFaceReference, listed: dict[str, Any], info: Any) -> Selection:
        if pinned.file is None:
            return select(
                Offer(
                    name=pinned.repo,
                    paths=listed,
                    reference_to=lambda path: f"hf:{pinned.repo}:{path}",
                    build=_build(info.config),
                )
            )
        if not pinned.file.endswith(_SUFFIX):
            raise InvalidRequest(f"{pinned.file} is no safetensors file. Expected {self.expects}.")
        if pinned.file not in listed:
            there = sorted(path for path in listed if path.endswith(_SUFFIX))[:10]
            words = f"{pinned.repo} has no file {pinned.file}. It has {', '.join(there) or 'no safetensors files'}."
            raise SourceNotFound(words, details={"files": there})
        return Selection((pinned.file,), main=pinned.file)

    def _file(self, pinned: HuggingFaceReference, listed: Any, *, alone: bool) -> RemoteFile:
        path = safe_path(listed.rfilename)
        sha256 = listed.lfs.sha256 if listed.lfs else None
        size = listed.lfs.size if listed.lfs else listed.size
        git_sha1 = None if listed.lfs else listed.blob_id
        told = _SHA256.fullmatch(str(sha256)) or _COMMIT.fullmatch(str(git_sha1))
        if told is None or not isinstance(size, int) or size < 0:
            raise DownloadCorrupt(f"Hugging Face does not tell the size and the hash of {path}: it is not fetched.")
        if size > _LARGEST_TEXT and not path.endswith(_SUFFIX):
            raise DownloadCorrupt(f"{path} has {size} bytes: that is no text of a model. It is not fetched.")
        return RemoteFile(
            path=path.rpartition("/")[2] if alone else path,
            url=f"{self._endpoint}/{pinned.repo}/resolve/{pinned.revision}/{quote(path)}",
            size=size,
            sha256=sha256,
            git_sha1=git_sha1,
        )


def _pinned(read: HuggingFaceReference, info: Any) -> HuggingFaceReference:
    """The reference at this commit, under the name that the repository has now."""
    try:
        named = parse(f"hf:{info.id}")
    except InvalidRequest as error:
        raise unanswered("names a repository as none is named") from error
    if not isinstance(named, HuggingFaceReference) or not _COMMIT.fullmatch(str(info.sha)):
        raise unanswered("does not say which commit a revision is")
    if info.siblings is None or len(info.siblings) > _MOST_FILES:
        raise unanswered("does not list the repository's files, or too many")
    return HuggingFaceReference(repo=named.repo, revision=info.sha, file=read.file)


def _build(config: object) -> str | None:
    """The class of diffusers that a repository says it is for: `config.diffusers._class_name`."""
    match config:
        case {"diffusers": {"_class_name": str(build)}} if build.isidentifier():
            return build[:100]
        case _:
            return None


def _name(pinned: HuggingFaceReference, main: str | None) -> str:
    stem = (main or "").removesuffix(_SUFFIX)
    own = pinned.repo.partition("/")[2]
    return model_name(stem if pinned.file and stem not in _NO_NAMES else own)
