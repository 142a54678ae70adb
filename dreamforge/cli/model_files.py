"""`dreamforge model download|publish|verify|gc`: the files of models, where they come from and where they lie."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.prompt import Confirm

from dreamforge.cli.background_download import download_in_background
from dreamforge.cli.configuration import harmless, tell_trouble
from dreamforge.cli.download_progress import observing, reading
from dreamforge.cli.model_registry import HASH_DIGITS
from dreamforge.cli.model_workshop import interruptible, print_line, terminal, workshop
from dreamforge.cli.service import JsonOption, UrlOption, print_json
from dreamforge.cli.wording import size
from dreamforge.client.calls import ModelWish
from dreamforge.errors import StorageUnavailable
from dreamforge.models.weights import Kind

if TYPE_CHECKING:
    from dreamforge.installation.garbage import Garbage
    from dreamforge.installation.request import Installation, InstallRequest
    from dreamforge.installation.verification import VerifiedModel

_References = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Names, name@versions, or ids; all models when none is given."),
]
_STOPPED = "Stopped. What was downloaded stays: the same command goes on from there."
_NOT_IN_A_LINE = {"descriptor", "registered", "parameters_schema"}
"""Its own parts, and what `model show --json` has: longer than all else together."""
_FLAGS = {"sdxl": "--model", "lora": "--lora", "vae": "--vae"}


def add_to(model: typer.Typer) -> None:
    """Make these the commands of `dreamforge model`."""
    model.command("download")(download)
    model.command("publish")(publish)
    model.command("verify")(verify)
    model.command("gc")(gc)


def download(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="hf:org/repo\\[@revision]\\[:file], civitai:model\\[@version], https://…#sha256=…, or file:/path.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What jobs call it; the source's name when it is not given.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; the source's when it is not given.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="What it has to be; otherwise what it turns out to be.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of a file that is not of SDXL 1.0's sizes: a folder with its configs."),
    ] = None,
    default: Annotated[
        bool | None,
        typer.Option(
            "--default/--no-default",
            help="Jobs that name no model take it from now on; the first checkpoint becomes that by itself.",
        ),
    ] = None,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Do not send it to the object store, where other nodes fetch it.")
    ] = False,
    background: Annotated[
        bool, typer.Option("--background", help="Have the service do it, with its own tokens; print the job's id.")
    ] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Download a model, verify it, and make it known. What breaks off goes on with the same command."""
    if background:
        if config is not None:
            raise typer.BadParameter("the service sees no folder of this command's.", param_hint="--config")
        wish = ModelWish(reference, name, version, kind, default, local_only)
        download_in_background(wish, as_json=as_json, url=url)
        return
    from dreamforge.installation.request import InstallRequest  # noqa: PLC0415 - `list` needs none of it

    request = InstallRequest(
        reference=reference, name=name, version=version, kind=kind, config=config, as_default=default,
        is_local_only=local_only,
    )  # fmt: skip
    _install(request, as_json=as_json)


def _install(request: "InstallRequest", *, as_json: bool) -> None:
    from dreamforge.installation.install import Installer  # noqa: PLC0415 - `list` needs none of it
    from dreamforge.models.references import parse  # noqa: PLC0415 - likewise

    console = terminal()
    with interruptible(console, words=_STOPPED, as_json=as_json) as check, ExitStack() as stack:
        # What is no reference is told first, whether the service runs or not.
        parse(request.reference)
        tools = stack.enter_context(workshop(needs_store=not request.is_local_only))
        observer = stack.enter_context(observing(console, print_line=print_line if as_json else None))
        installed = Installer.of(tools).install(request, observer=observer, check=check)
    for warning in installed.warnings:
        console.print(f"! {harmless(warning)}", style="yellow", markup=False)
    if as_json:
        told = {**asdict(installed), **asdict(installed.descriptor), **asdict(installed.registered)}
        print_line({"event": "installed", **{key: told[key] for key in told if key not in _NOT_IN_A_LINE}})
    else:
        _tell(installed, console)


def publish(
    references: Annotated[list[str], typer.Argument(metavar="NAME", help="Names, name@versions, or ids.")],
    again: Annotated[
        bool, typer.Option("--again", help="Send what is there already too: a node has found it damaged.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send models to the object store, where other nodes fetch them: imported ones, and after --local-only."""
    from dreamforge.installation.whereabouts import files_at  # noqa: PLC0415 - `list` needs none of it

    console = terminal()
    items: list[dict[str, object]] = []
    with interruptible(console, words="Stopped.", as_json=as_json) as check, workshop() as tools:
        publisher = tools.required_publisher()
        for model in tools.registry.installed(references):
            with reading(console, f"Publishing {harmless(model.reference)}") as on_bytes:
                sent = publisher.publish(files_at(model), on_bytes=on_bytes, check=check, again=again)
            at = datetime.now(UTC).isoformat(timespec="seconds")
            tools.registry.note_published(model.id, at)
            items.append({"model": model.reference, "sent_bytes": sent, "published_at": at})
            if not as_json:
                told = f"{size(sent)} sent" if sent else "it was there already"
                console.print(f"✓ {model.reference} is in the object store: {told}.", markup=False)
    if as_json:
        print_json({"items": items})


def verify(references: _References = None, as_json: JsonOption = False) -> None:
    """Read every file of installed models again; bring anew what is damaged, from the object store or the source.

    Exit code 1 when something stays damaged.
    """
    from dreamforge.installation.verification import FileState, Verifier  # noqa: PLC0415 - `list` needs none of it

    console = terminal()
    found: list[VerifiedModel] = []
    with (
        interruptible(console, words="Stopped: no file was changed by half.", as_json=as_json) as check,
        workshop() as tools,
    ):
        verifier = Verifier(workshop=tools, check=check)
        for model in tools.registry.installed(references or []):
            with reading(console, f"Reading {harmless(model.reference)}") as on_bytes:
                found.append(verifier.verify(model, on_read=on_bytes))
            if not as_json:
                _tell_verified(found[-1], console)
    if as_json:
        print_json({"items": [{**asdict(model), "state": model.state} for model in found]})
    elif not found:
        console.print("There are no models.")
    if any(model.state is FileState.DAMAGED for model in found):
        raise typer.Exit(1)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Free the disk and the object store of what no model needs: broken off downloads, removed models' files.

    Exit code 1 when nothing was removed because nobody said so.
    """
    from dreamforge.installation.garbage import Collector  # noqa: PLC0415 - `list` needs none of it

    console = terminal()
    with interruptible(console, words="Stopped.", as_json=as_json) as check, workshop() as tools:
        collector = Collector(workshop=tools, now=datetime.now(UTC))
        found = collector.here()
        if tools.blobs is not None:
            try:
                found += collector.stored(tools.blobs)
            except StorageUnavailable as error:
                console.print(f"! The object store is left as it is: {error.message}", style="yellow", markup=False)
        if not as_json:
            _tell_found(found, console)
        is_wanted = not dry_run and (yes or not found or _wants_removal(found, console))
        gone = [garbage for garbage in found if is_wanted and _removed(collector.remove, garbage, check)]
        if is_wanted:
            collector.tidy()
    if as_json:
        items = [{**asdict(garbage), "removed": garbage in gone} for garbage in found]
        print_json({"items": items, "freed_bytes": _together(gone)})
    elif gone:
        console.print(f"✓ {size(_together(gone))} freed.")
    elif dry_run and found:
        console.print(f"{size(_together(found))} in all, and nothing was removed. To remove it: dreamforge model gc")
    if not (is_wanted or dry_run):
        raise typer.Exit(1)


def _removed(remove: "Callable[[Garbage], bool]", garbage: "Garbage", check: Callable[[], None]) -> bool:
    check()
    return remove(garbage)


def _wants_removal(found: "Sequence[Garbage]", console: Console) -> bool:
    if not sys.stdin.isatty():
        tell_trouble(console, "Nobody is there to be asked: if it is to be removed, say --yes.")
        return False
    try:
        return Confirm.ask(f"Remove it, {size(_together(found))}?", console=console, default=False)
    except EOFError:
        console.print()
        return False


def _together(found: "Sequence[Garbage]") -> int:
    return sum(garbage.size_bytes for garbage in found)


def _tell_found(found: "Sequence[Garbage]", console: Console) -> None:
    if not found:
        console.print("There is nothing to remove.")
    for garbage in found:
        console.print(f"  {garbage.waste}: {harmless(garbage.name)}, {size(garbage.size_bytes)}", markup=False)


def _tell_verified(model: "VerifiedModel", console: Console) -> None:
    many = "1 file" if len(model.files) == 1 else f"{len(model.files)} files"
    match model.state.value:
        case "ok":
            console.print(f"✓ {model.reference}: {many}, each as it was.", markup=False)
        case "repaired":
            console.print(f"✓ {model.reference}: repaired.", markup=False)
        case _:
            tell_trouble(console, f"{model.reference} is damaged.")
    for file in model.files:
        if file.problem:
            mended = f"; brought anew from {file.repaired_from}" if file.repaired_from else ""
            console.print(f"  {harmless(file.path)} {harmless(file.problem + mended)}.", markup=False)


def _tell(installed: "Installation", console: Console) -> None:
    model = installed.descriptor
    dtype = model.metadata.get("weights", {}).get("dtype")
    facts = (
        f"{model.name}@{model.version}",
        model.kind,
        *([dtype] if dtype else []),
        size(model.size_bytes),
        f"sha256 {model.checkpoint_hash[:HASH_DIGITS]}…",
    )
    known = " It was installed already." if installed.was_there else ""
    console.print(f"✓ {', '.join(facts)}.{known}", markup=False)
    reach = "in the object store, where other nodes fetch it" if installed.is_published else "on this machine alone"
    console.print(f"  It is in {harmless(str(installed.folder))}, and {reach}.", markup=False)
    if installed.registered.is_default:
        console.print("  Jobs that name no model take it.")
    choice = "" if installed.registered.is_default else f" {_FLAGS.get(model.kind, '--model')} {model.name}"
    console.print(f'  Draw with it: dreamforge generate "a lighthouse at dawn"{choice}', markup=False)
