"""`dreamforge models …`."""

import typer
from rich.table import Table

from dreamforge.cli.service import JsonOption, UrlOption, print_json, service, stdout_console
from dreamforge.cli.wording import size

models = typer.Typer(help="The models of the service.", no_args_is_help=True, add_completion=False)


@models.callback()
def _group() -> None:
    """Keeps `list` a command of its own although it is the only one."""


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
