"""What changes the registry of models, in the service's database; the API sees it with the next request."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.prompt import Confirm

from dreamforge.cli.configuration import harmless, load_settings, tell_trouble, told_to
from dreamforge.cli.service import JsonOption, print_json, stdout_console
from dreamforge.cli.wording import size
from dreamforge.models.weights import Kind

if TYPE_CHECKING:
    from dreamforge.installation.model_import import Imported
    from dreamforge.store.models import ModelRegistry

_Reference = Annotated[str, typer.Argument(metavar="NAME", help="A name, name@version, or an id.", show_default=False)]
HASH_DIGITS = 12
"""Of a hash, where it is shown short."""


def add_to(model: typer.Typer) -> None:
    """Make these the commands of `dreamforge model`."""
    model.command("import")(import_)
    model.command("default")(default)
    model.command("enable")(enable)
    model.command("disable")(disable)
    model.command("remove")(remove)


def import_(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A .safetensors file, or a folder as diffusers' save_pretrained() makes."),
    ],
    name: Annotated[
        str | None, typer.Option(help="What jobs call it; the file's or folder's name when it is not given.")
    ] = None,
    version: Annotated[str, typer.Option(help="A name may have several.")] = "1",
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
    as_json: JsonOption = False,
) -> None:
    """Make a model known: a checkpoint, a LoRA or a VAE. It stays there: every GPU node must find it at that path."""
    from dreamforge.embedded.layout import database_url_of  # noqa: PLC0415 - `list` needs no database
    from dreamforge.installation.model_import import ImportRequest, import_model  # noqa: PLC0415 - likewise

    console = _console()
    wanted = ImportRequest(path=path, name=name, version=version, kind=kind, config=config, as_default=default)
    with told_to(console), _reading(console) as progress:
        task = progress.add_task(f"Reading {harmless(path.name)}", total=None)

        def on_bytes(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        imported = import_model(wanted, database_url_of(load_settings()), on_bytes=on_bytes)
    for warning in imported.inspection.warnings:
        console.print(f"! {harmless(warning)}", style="yellow", markup=False)
    if as_json:
        print_json({**asdict(imported.descriptor), **asdict(imported.registered)})
    else:
        _tell(imported, console)


def default(reference: _Reference) -> None:
    """Have jobs that name no model take this one."""
    with _registry() as registry:
        model = registry.find(reference)
        registry.make_default(model.id)
    stdout_console().print(f"Jobs that name no model take {model.reference}.")


def enable(reference: _Reference) -> None:
    """Switch a model on."""
    with _registry() as registry:
        model = registry.find(reference)
        registry.set_enabled(model.id, True)
    stdout_console().print(f"{model.reference} is switched on.")


def disable(reference: _Reference) -> None:
    """Switch a model off: no new job can name it. Those that were accepted are still drawn."""
    with _registry() as registry:
        model = registry.find(reference)
        registry.set_enabled(model.id, False)
    stdout_console().print(f"{model.reference} is switched off.")


def remove(
    reference: _Reference, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Forget a model. Its files stay where they are.

    Exit code 1 when it was not removed.
    """
    with _registry() as registry:
        model = registry.find(reference)
        if not (yes or _wants_removal(model.reference)):
            raise typer.Exit(1)
        is_gone = registry.remove(model.id)
    kept = "" if is_gone else " It is still listed, as not installed, for the jobs that were drawn with it."
    console = stdout_console()
    console.print(f"{model.reference} is removed.{kept}")
    console.print("Its files are where they were. Those that were downloaded go with: dreamforge model gc")


def _wants_removal(reference: str) -> bool:
    console = _console()
    if not sys.stdin.isatty():
        tell_trouble(console, "Nobody is there to be asked: if it is to be removed, say --yes.")
        return False
    try:
        return Confirm.ask(f"Remove {reference}? Its files stay.", console=console, default=False)
    except EOFError:
        console.print()
        return False


@contextmanager
def _registry() -> "Generator[ModelRegistry]":
    from dreamforge.embedded.layout import database_url_of  # noqa: PLC0415 - `list` needs no database
    from dreamforge.installation.model_import import registry_of  # noqa: PLC0415 - likewise

    with told_to(_console()), registry_of(database_url_of(load_settings())) as registry:
        yield registry


def _console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _reading(console: Console) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _tell(imported: "Imported", console: Console) -> None:
    model, weights = imported.descriptor, imported.inspection.weights
    facts = (
        f"{model.name}@{model.version}",
        model.kind,
        weights.dtype,
        size(model.size_bytes),
        f"sha256 {model.checkpoint_hash[:HASH_DIGITS]}…",
    )
    known = "" if imported.registered.is_new else " It was known already; this is where it lies now."
    console.print(f"✓ {', '.join(facts)}.{known}", soft_wrap=True, markup=False)
    if imported.registered.is_default:
        console.print("  Jobs that name no model take it.")
    named = {Kind.CHECKPOINT: " --model ", Kind.LORA: " --lora ", Kind.VAE: " --vae "}[weights.kind] + model.name
    choice = "" if imported.registered.is_default else named
    console.print(f'  Draw with it: dreamforge generate "a lighthouse at dawn"{choice}', markup=False)
