"""The service as commands reach it: its address, a client, and trouble told in one sentence."""

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from pydantic_core import to_json
from rich.console import Console

from dreamforge.cli.configuration import load_settings, told_to
from dreamforge.client import Client

EXIT_INTERRUPTED = 130
_UNLIMITED = 10_000

Item = TypeVar("Item")

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="Address of the service; DREAMFORGE_URL when it is not given.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
JobIdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id, whole.", show_default=False)]


@contextmanager
def service(url: str | None) -> Generator[Client]:
    """A client for the length of a command. Trouble goes to standard error, and ends the command with 1."""
    with told_to(Console(stderr=True)), Client(url or load_settings().service_url) as client:
        try:
            yield client
        except KeyboardInterrupt as error:
            raise typer.Exit(EXIT_INTERRUPTED) from error


def stdout_console() -> Console:
    """Standard output; where it is no terminal lines are as long as they are."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _UNLIMITED)


def first(found: Iterable[Item], limit: int) -> tuple[list[Item], bool]:
    """The first items, ``limit`` at most, and whether there are more."""
    items = list(islice(found, limit + 1))
    return items[:limit], len(items) > limit


def print_json(value: BaseModel | dict[str, Any]) -> None:
    """One JSON object on standard output."""
    typer.echo(to_json(value, indent=2).decode())
