"""`dreamforge model …`: the models that images are drawn with, the LoRAs and VAEs that go with them."""

from typing import Annotated

import typer
from rich.table import Table

from dreamforge.api.schemas import Model
from dreamforge.cli import model_files, model_registry
from dreamforge.cli.configuration import harmless
from dreamforge.cli.service import JsonOption, UrlOption, print_json, service, stdout_console
from dreamforge.cli.wording import size

model = typer.Typer(
    help="Models: download, import, list, switch on and off, verify, remove them.",
    no_args_is_help=True,
    add_completion=False,
)
model_files.add_to(model)
model_registry.add_to(model)


@model.command("list")
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
    for one in found:
        # Nobody has drawn with it yet, which says nothing of who can.
        nodes = str(sum(node.online for node in one.nodes) or "")
        table.add_row(one.name, one.version, one.kind, _state(one), size(one.size_bytes), nodes, str(one.id))
    console.print(table)


@model.command("show")
def show(
    reference: Annotated[str, typer.Argument(metavar="NAME", help="A name, name@version, or an id.")],
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show a model. With --json its whole descriptor, with the schema of its parameters."""
    with service(url) as client:
        found = client.model(reference)
    if as_json:
        print_json(found)
        return
    known: dict[str, object] = {
        "name": f"{found.name}@{found.version}",
        "id": found.id,
        "kind": found.kind,
        "state": _state(found),
        "size": size(found.size_bytes),
        "sha256": found.checkpoint_hash,
        "short hash": (found.checkpoint_hash or "")[: model_registry.HASH_DIGITS],
        "from": found.source_uri,
        "object store": f"since {published}" if (published := found.metadata.get("published_at")) else None,
        **found.metadata.get("weights", {}),
        "configuration": found.metadata.get("config_path"),
        "nodes": ", ".join(node.node if node.online else f"{node.node} (away)" for node in found.nodes),
        "parameters": ", ".join(found.parameters_schema.get("properties", {})),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in known.items():
        if value:
            # A name or a path may hold brackets, which are no markup.
            table.add_row(name.replace("_", " "), harmless(str(value)).replace("[", r"\["))
    stdout_console().print(table)


def _state(found: Model) -> str:
    state = "not installed" if not found.installed else "ready" if found.enabled else "disabled"
    return f"{state}, default" if found.default else state
