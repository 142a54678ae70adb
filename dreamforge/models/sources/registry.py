"""Which source a reference belongs to: the built-in ones, and those that packages add.

A package adds one by an entry point in the group `dreamforge.model_sources`. Its name is the scheme that the
references begin with, its object a subclass of ``ModelSource`` that is made without arguments:

    [project.entry-points."dreamforge.model_sources"]
    mirror = "our_package.mirror:MirrorSource"

Such a package is imported when one of its references is first asked for, not before.
"""

import logging
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from dreamforge.errors import InvalidRequest
from dreamforge.models.references import expected, parse
from dreamforge.models.sources.civitai import CivitaiSource
from dreamforge.models.sources.huggingface import HuggingFaceSource
from dreamforge.models.sources.local import LocalSource
from dreamforge.models.sources.source import ModelSource
from dreamforge.models.sources.url import UrlSource

log = logging.getLogger(__name__)

GROUP = "dreamforge.model_sources"


class Sources:
    """Every place that models come from. ``added``: the entry points that name more of them."""

    def __init__(self, *, builtin: Sequence[ModelSource], added: Sequence[EntryPoint] = ()) -> None:
        self._sources: dict[str, ModelSource] = {source.scheme: source for source in builtin}
        self._builtin = frozenset(self._sources)
        self._added = added
        for point in added:
            if point.name in self._builtin:
                log.warning("a package's source has the name of a built-in one: it is not used", extra=_told(point))

    @property
    def schemes(self) -> tuple[str, ...]:
        """What references may begin with."""
        return tuple(sorted({*self._builtin, *(point.name for point in self._added)}))

    def source_for(self, reference: str) -> ModelSource:
        """The source that this reference belongs to.

        Raises ``InvalidRequest`` for what is no reference, one that no source knows, and a package that does not work.
        """
        scheme = parse(reference).scheme
        if scheme not in self._sources:
            self._sources[scheme] = self._load(scheme)
        return self._sources[scheme]

    def _load(self, scheme: str) -> ModelSource:
        points = [point for point in self._added if point.name == scheme]
        if not points:
            known = ", ".join(self.schemes)
            raise InvalidRequest(f"No source here is called {scheme!r}, but {known}. {expected()}")
        if len(points) > 1:
            raise _broken(scheme, f"several packages add it: {', '.join(sorted(map(_package, points)))}")
        return _made(points[0])


def open_sources(
    *,
    hf_token: str | None = None,
    hf_endpoint: str = "https://huggingface.co",
    civitai_token: str | None = None,
    civitai_endpoint: str = "https://civitai.com",
) -> Sources:
    """The built-in sources with these tokens and endpoints, and those that installed packages add."""
    builtin: tuple[ModelSource, ...] = (
        HuggingFaceSource(endpoint=hf_endpoint, token=_usable(hf_token, "HF_TOKEN")),
        CivitaiSource(endpoint=civitai_endpoint, token=_usable(civitai_token, "DREAMFORGE_CIVITAI_TOKEN")),
        UrlSource(),
        LocalSource(),
    )
    return Sources(builtin=builtin, added=tuple(entry_points(group=GROUP)))


def _usable(token: str | None, name: str) -> str | None:
    """The token as a header can carry it: files that hold one end with a new line. None for what is none."""
    token = (token or "").strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        log.warning("what is set as a token is none: it is not used", extra={"setting": name})
        return None
    return token or None


def _made(point: EntryPoint) -> ModelSource:
    # A stranger's package: whatever is wrong there is said, and stops no other source.
    try:
        kind = point.load()
        source = kind()
    except Exception as error:
        raise _broken(point.name, f"{_package(point)} fails with {type(error).__name__}") from error
    if not isinstance(source, ModelSource) or source.scheme != point.name:
        raise _broken(point.name, f"{point.value} of {_package(point)} is no source of that name")
    return source


def _told(point: EntryPoint) -> dict[str, str]:
    return {"scheme": point.name, "package": _package(point)}


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "a package"


def _broken(scheme: str, words: str) -> InvalidRequest:
    return InvalidRequest(f"The source {scheme!r} does not work: {words}. Mend or remove that package.")
