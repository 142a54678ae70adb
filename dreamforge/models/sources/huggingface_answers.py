"""What Hugging Face's refusals mean, and what to do about each.

The headers `X-Error-Code` (`RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, `GatedRepo`) and `X-Error-Message` tell
them apart: see `hf_raise_for_status` in huggingface_hub's utils/_http.py, which makes exceptions of them.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from dreamforge.errors import SourceError, SourceForbidden, SourceNotFound, SourceUnavailable
from dreamforge.models.references import HuggingFaceReference
from dreamforge.models.sources.attempts import retry_after

_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - what the hub says of one
_NEW_TOKEN = "make a token with read access in the settings of Hugging Face and set HF_TOKEN to it"  # noqa: S105 - words


@dataclass(frozen=True)
class Asker:
    """Who asks for what: ``read`` of the hub at ``endpoint``."""

    read: HuggingFaceReference
    endpoint: str
    has_token: bool

    @property
    def page(self) -> str:
        """Where a person looks at the repository."""
        return f"{self.endpoint}/{self.read.repo}"


@contextmanager
def meaning_for(asker: Asker) -> Generator[None]:
    """Turn what huggingface_hub raises into the errors of this service."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _meaning(error, asker) from error
    except OfflineModeIsEnabled as error:
        raise unanswered("is not asked, because HF_HUB_OFFLINE is set") from error
    except httpx2.HTTPError as error:
        raise unanswered(f"does not answer at {asker.endpoint} ({type(error).__name__})") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # What huggingface_hub makes of an answer that is not as it should be, of a proxy's page for one.
        raise unanswered("answers with something else than a repository's description") from error


def unanswered(words: str) -> SourceUnavailable:
    """The error for a hub of which no answer, or none of use, was to be had."""
    return SourceUnavailable(f"Hugging Face {words}. Try again later.")


def _meaning(error: HfHubHTTPError, asker: Asker) -> SourceError:
    repo, revision = asker.read.repo, asker.read.revision
    match error:
        case GatedRepoError():
            return _gated(asker)
        case RepositoryNotFoundError():
            return _missing(asker)
        case RevisionNotFoundError():
            return SourceNotFound(f"{repo} has no revision {revision}. See {asker.page}/tree/main for those it has.")
        case RemoteEntryNotFoundError():
            return SourceNotFound(f"{repo} has not got that file any more.")
        case DisabledRepoError():
            return SourceForbidden(f"Hugging Face has closed {repo}: take another.")
        case _:
            return _refusal(error, asker)


def _gated(asker: Asker) -> SourceForbidden:
    details = {"page": asker.page}
    if asker.has_token:
        words = f"Accept its licence, or ask for access, at {asker.page} with the account that HF_TOKEN is of."
    else:
        words = f"Accept its licence at {asker.page}, then {_NEW_TOKEN}."
    return SourceForbidden(f"{asker.read.repo} is gated. {words}", details=details)


def _missing(asker: Asker) -> SourceNotFound:
    words = f"Hugging Face has no repository {asker.read.repo}"
    if asker.has_token:
        return SourceNotFound(f"{words}, or none that the account of HF_TOKEN may see.")
    return SourceNotFound(f"{words}. If it is private, {_NEW_TOKEN}.")


def _refusal(error: HfHubHTTPError, asker: Asker) -> SourceError:
    answer, repo = error.response, asker.read.repo
    match answer.status_code:
        case HTTPStatus.UNAUTHORIZED if answer.headers.get("x-error-message") == _BAD_TOKEN:
            return SourceForbidden(f"Hugging Face does not know the token in HF_TOKEN: {_NEW_TOKEN}.")
        case HTTPStatus.UNAUTHORIZED if not asker.has_token:
            # Who does not say who they are is not told whether a repository is there.
            return _missing(asker)
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return SourceForbidden(
                f"Hugging Face does not give {repo} to the account that HF_TOKEN is of: {_NEW_TOKEN}."
            )
        case HTTPStatus.NOT_FOUND:
            return SourceNotFound(f"Hugging Face has no repository {repo}.")
        case HTTPStatus.TOO_MANY_REQUESTS:
            return _limit(answer)
        case status:
            words = f"Hugging Face answers with an error, {status}. Try again later."
            return SourceUnavailable(words, details=retry_after(answer.headers))


def _limit(answer: httpx2.Response) -> SourceUnavailable:
    limit = parse_ratelimit_headers(answer.headers)
    is_spent = limit is not None and limit.remaining == 0
    wait = {"retry_after": float(limit.reset_in_seconds)} if limit and is_spent else retry_after(answer.headers)
    when = f"in {wait['retry_after']:.0f} seconds" if wait else "later"
    words = "Hugging Face has had too many requests from here"
    return SourceUnavailable(f"{words}. Try again {when}; with a token in HF_TOKEN more are allowed.", details=wait)
