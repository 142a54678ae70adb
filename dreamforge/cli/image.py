"""`dreamforge image …`: what an image file says about how it was made."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamforge.cli.configuration import harmless, told_to
from dreamforge.cli.drawing import CountOption, FolderOption, draw
from dreamforge.cli.image_call import call_of
from dreamforge.cli.image_view import rows_of
from dreamforge.cli.service import JsonOption, UrlOption, print_json, service, stdout_console
from dreamforge.client import calls
from dreamforge.embedded.trouble import StackError
from dreamforge.images.reading import MOST_BYTES, ReadMetadata, read_image
from dreamforge.jobs.image_format import IMAGE_FORMATS

image = typer.Typer(
    help="See how an image file was made, and make it again.", no_args_is_help=True, add_completion=False
)

_File = Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG or WebP.", show_default=False)]
_Model = Annotated[
    str | None, typer.Option(help="Another one: an id, a name, or name@version.", show_default="the file's")
]


@image.command("show")
def show(file: _File, as_json: JsonOption = False) -> None:
    """Show what an image says about how it was made: by Dream Forge, or by others that write A1111's text."""
    with told_to(Console(stderr=True)):
        read = _read(file)
    if as_json:
        print_json(_as_json(file, read))
        return
    console = stdout_console()
    console.print(f"{IMAGE_FORMATS[read.format].title}, {read.width} x {read.height} pixels", markup=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows_of(read):
        table.add_row(Text(harmless(name)), Text(harmless(value)))
    console.print(table)


@image.command("rerun")
def rerun(
    file: _File,
    model: _Model = None,
    count: CountOption = 1,
    output: FolderOption = Path(),
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Draw an image again, as its file says, and save it as `generate` does. With a count the seeds go on from its own.

    What cannot be as it was is told first. Exit code 0: all are saved; 1: it failed; 130: interrupted.
    """
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    with told_to(told):
        read = _read(file)
    with service(url) as client:
        call = call_of(read, client.models(), model=model)
        if call is None:
            raise StackError(f"{file} does not say how it was made.")
        for note in call.notes:
            told.print(f"! {harmless(note)}", style="yellow", markup=False)
        submit = partial(
            client.submit,
            call.prompt,
            count=count,
            model=call.model,
            params=call.params,
            options=call.options,
            idempotency_key=calls.new_key(),
        )
        draw(submit, client=client, folder=output, as_json=as_json)


def _read(file: Path) -> ReadMetadata:
    """What the file says. Raises ``StackError`` when it is no image, and when it says nothing; ``OSError``."""
    with file.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    try:
        read = read_image(data)
    except ValueError as error:
        raise StackError(f"{file} {error}.") from error
    if read.parameters is None and read.manifest is None:
        raise StackError(f"{file} does not say how it was made.")
    return read


def _as_json(file: Path, read: ReadMetadata) -> dict[str, Any]:
    return {
        "file": str(file),
        "format": read.format,
        "width": read.width,
        "height": read.height,
        "manifest": read.manifest.as_json() if read.manifest else None,
        "parameters": read.parameters,
    }
