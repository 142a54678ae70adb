"""`dreamforge models …`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dreamforge.cli.configuration import load_settings, told_to
from dreamforge.cli.service import JsonOption, UrlOption, print_json, service, stdout_console
from dreamforge.cli.wording import size

models = typer.Typer(help="The models of the service.", no_args_is_help=True, add_completion=False)


@models.command("list")
def list_models(as_json: JsonOption = False, url: UrlOption = None) -> None:
    """List the models."""
    with service(url) as client:
        found = client.models()
    if as_json:
        print_json({"items": found})
        return
    console = stdout_console()
    if not found:
        console.print("There are no models.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "version", "kind", "state", "size", "nodes", "id"):
        table.add_column(heading, justify="right" if heading in {"size", "nodes"} else "left", no_wrap=True)
    for model in found:
        state = "not installed" if not model.installed else "disabled" if not model.enabled else "ready"
        table.add_row(
            model.name,
            model.version,
            model.kind,
            f"{state}, default" if model.default else state,
            size(model.size_bytes),
            str(len(model.nodes)),
            str(model.id),
        )
    console.print(table)


@models.command("add")
def add(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="As diffusers' save_pretrained() makes it.")],
    name: Annotated[
        str | None, typer.Option(help="What jobs call it; the folder's name when it is not given.", show_default=False)
    ] = None,
    version: Annotated[str, typer.Option(help="A name may have several.")] = "1",
    default: Annotated[bool, typer.Option(help="Jobs that name no model take it from now on.")] = True,
) -> None:
    """Make an SDXL model known that lies in a folder. It stays there: every GPU node must find it at that path."""
    from dreamforge.embedded.installation import add_model  # noqa: PLC0415 - `list` needs no database
    from dreamforge.embedded.layout import database_url_of  # noqa: PLC0415 - likewise

    console = Console(stderr=True)
    with told_to(console):
        database_url = database_url_of(load_settings())
        with console.status("Reading the model's files"):
            model = add_model(
                folder, database_url, name=name or folder.resolve().name, version=version, is_default=default
            )
        console.print(
            f"✓ {model.name}@{model.version}, {size(model.size_bytes)}, sha256 {str(model.checkpoint_hash)[:12]}…"
            f"{': jobs that name no model take it' if default else ''}",
            highlight=False,
            soft_wrap=True,
        )
