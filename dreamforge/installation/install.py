"""From a reference to a model that jobs can be drawn with: downloaded, verified, published, registered."""

from collections.abc import Callable
from typing import Self

from dreamforge.blobs import Blobs
from dreamforge.errors import DreamForgeError
from dreamforge.installation.assembly import Assembly
from dreamforge.installation.fetcher import Engine
from dreamforge.installation.holding import waited_for
from dreamforge.installation.model_import import as_name, require_names
from dreamforge.installation.observer import Observer, Phase
from dreamforge.installation.request import Installation, InstallRequest
from dreamforge.installation.whereabouts import conflict_with, damage_of, differs, is_same
from dreamforge.installation.workshop import Workshop, install_key, owner_here
from dreamforge.models.remote import RemoteModel
from dreamforge.models.shelf import Shelf
from dreamforge.models.sources.registry import Sources
from dreamforge.store.downloads import DownloadLeases, Holder
from dreamforge.store.model_contents import ModelContent
from dreamforge.store.models import ModelRegistry

__all__ = ["InstallRequest", "Installation", "Installer"]


class Installer:
    """Installs models into one folder and one registry. ``blobs``: None where there is no object store.

    ``owner``: who this is, for those who wait for the same model; this process when it is None.
    """

    def __init__(
        self,
        *,
        shelf: Shelf,
        registry: ModelRegistry,
        leases: DownloadLeases,
        downloader: Engine,
        sources: Sources,
        blobs: Blobs | None,
        owner: str | None = None,
    ) -> None:
        self._workshop = Workshop(
            shelf=shelf,
            registry=registry,
            leases=leases,
            downloader=downloader,
            sources=sources,
            blobs=blobs,
            owner=owner or owner_here(),
        )

    @classmethod
    def of(cls, workshop: Workshop) -> Self:
        """One that works with these parts."""
        return cls(**vars(workshop))

    def install(
        self, request: InstallRequest, *, observer: Observer, check: Callable[[], None] = lambda: None
    ) -> Installation:
        """Have the model installed and enabled; what is whole of it already is not brought again.

        ``check`` is called again and again, from several threads, and raises what is to end it: what was downloaded
        stays, and the next try goes on from there. Nothing is registered before all of it is verified. An object store
        that is away is told in the warnings: the model is installed, but not published.

        Raises ``InvalidRequest``, ``errors.SourceError``, ``Conflict`` for a name and version of other content,
        ``ModelCorrupt``, ``ModelIncompatible``, ``DiskFull``, ``DatabaseUnavailable``, and what ``check`` raises.
        """
        observer.on_phase(Phase.RESOLVE)
        source = self._workshop.sources.source_for(request.reference)
        model = source.resolve(request.reference)
        check()
        name, version = request.name or as_name(model.name), request.version or as_name(model.version)
        require_names(name, version)
        # Before gigabytes; and again when nobody else can change the answer.
        self._known(model, name, version)
        observer.on_resolved(model)
        while True:
            installed = self._in_turn(request, model, (name, version), observer=observer, check=check)
            if installed is not None:
                return installed

    def _in_turn(
        self,
        request: InstallRequest,
        model: RemoteModel,
        named: tuple[str, str],
        *,
        observer: Observer,
        check: Callable[[], None],
    ) -> Installation | None:
        """Install it while nobody else does; None when the lease was lost, frozen or cut off from the database."""
        name, version = named
        key = install_key(name, version)
        workshop = self._workshop

        def on_wait(other: Holder) -> None:
            observer.on_wait(f"{name}@{version}", other.owner, other.bytes_done, other.size)

        place, owner = workshop.shelf.place(), workshop.owner
        with waited_for(
            workshop.leases, place, key, owner=owner, check=check, on_wait=on_wait, size=model.size_bytes
        ) as held:

            def check_all() -> None:
                held.check()
                check()

            assembly = Assembly(
                workshop=workshop,
                request=request,
                model=model,
                name=name,
                version=version,
                observer=observer,
                held=held,
                key=key,
                check=check_all,
            )
            try:
                return self._assembled(assembly, request, model, self._known(model, name, version))
            except (DreamForgeError, OSError):
                # A lost lease that is not this one is whoever asked's. Without it anything may go wrong: somebody else
                # clears away what was begun.
                if held.is_good:
                    raise
                return None

    def _assembled(
        self, assembly: Assembly, request: InstallRequest, model: RemoteModel, known: ModelContent | None
    ) -> Installation:
        warnings: tuple[str, ...] = ()
        if known is not None and known.installed and is_same(model, known) and request.config is None:
            if (damage := damage_of(known)) is None:
                return assembly.as_it_was(known)
            warnings = (f"{known.reference} was installed, but {damage}: it is installed anew.",)
        return assembly.assemble(self._workshop.sources.source_for(request.reference), known, warnings=warnings)

    def _known(self, model: RemoteModel, name: str, version: str) -> ModelContent | None:
        """What the registry has by this name. Raises ``Conflict`` for something else."""
        known = self._workshop.registry.content_of(name=name, version=version)
        if known is not None and differs(model, known):
            raise conflict_with(known)
        return known
