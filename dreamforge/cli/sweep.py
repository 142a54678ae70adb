"""`dreamforge sweep`: images that no row leads to, and rows whose image is gone."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.prompt import Confirm

from dreamforge.cli.configuration import load_settings, tell_trouble, told_to
from dreamforge.cli.service import JsonOption, print_json, stdout_console
from dreamforge.cli.wording import size

if TYPE_CHECKING:
    from dreamforge.dispatch.sweep import Found

_SHOWN = 20


def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, even where most objects would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove images from the object store that no job knows and that are a day old; name those that are missing."""
    from dreamforge.blobs import Blobs  # noqa: PLC0415 - other commands need no store
    from dreamforge.dispatch import sweep as sweeping  # noqa: PLC0415 - likewise
    from dreamforge.embedded.layout import blob_settings_of, database_url_of  # noqa: PLC0415 - likewise
    from dreamforge.store.artifact_keys import ArtifactKeys  # noqa: PLC0415 - likewise
    from dreamforge.store.engine import open_engine  # noqa: PLC0415 - likewise

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    removed = None
    with told_to(console):
        settings = load_settings()
        engine = open_engine(database_url_of(settings), application="dreamforge-sweep", pool_size=1)
        try:
            blobs, keys = Blobs(blob_settings_of(settings)), ArtifactKeys(engine=engine)
            with console.status("Comparing images and rows"):
                found = sweeping.find(blobs=blobs, keys=keys)
            if not dry_run and (yes or not found.is_odd or _wants_removal(found, console)):
                removed = sweeping.remove(found, blobs=blobs, keys=keys)
        finally:
            engine.dispose()
    if as_json:
        print_json(
            {
                "objects": found.objects,
                "removed": removed or 0,
                "orphans": [orphan.key for orphan in found.orphans],
                "orphan_bytes": found.orphan_bytes,
                "missing": found.missing,
            }
        )
    else:
        _print(found, removed, console)
    if found.missing or (removed is None and not dry_run):
        raise typer.Exit(1)


def _wants_removal(found: "Found", console: Console) -> bool:
    share = f"{len(found.orphans)} of {found.old} objects that are a day old belong to no job of this database"
    if not sys.stdin.isatty():
        tell_trouble(console, f"{share}: is it the right one? If it is, say --yes.")
        return False
    console.print(f"{share}: is it the right one?")
    try:
        return Confirm.ask("Remove them for good?", console=console, default=False)
    except EOFError:
        console.print()
        return False


def _print(found: "Found", removed: int | None, console: Console) -> None:
    what = f"{len(found.orphans)} of {found.objects} objects belong to no job ({size(found.orphan_bytes)})"
    ending = "." if not found.orphans else ": nothing was removed." if removed is None else f"; {removed} were removed."
    stdout_console().print(f"{what}{ending}")
    for key in found.missing[:_SHOWN]:
        tell_trouble(console, f"{key} is not in the object store.")
    if len(found.missing) > _SHOWN:
        console.print(f"and {len(found.missing) - _SHOWN} more: --json names all.")
