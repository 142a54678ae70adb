"""What the commands that download, verify and clean up models have in common."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from pydantic_core import to_json
from rich.console import Console

from dreamforge.cli.configuration import load_settings, tell_trouble, told_to
from dreamforge.cli.service import EXIT_INTERRUPTED
from dreamforge.errors import Cancelled, DreamForgeError

if TYPE_CHECKING:
    from dreamforge.installation.workshop import Workshop
    from dreamforge.settings import Settings


def terminal() -> Console:
    """Where a person is told; standard output is for programs."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_line(event: dict[str, Any]) -> None:
    """One JSON object on a line of its own, at once."""
    typer.echo(to_json(event).decode())


@contextmanager
def workshop(*, needs_store: bool = True) -> "Generator[Workshop]":
    """What models are put together with, over the database and the object store of the service."""
    from dreamforge.installation.opening import open_workshop  # noqa: PLC0415 - most commands need none of it

    with open_workshop(_values(load_settings(), needs_store=needs_store)) as opened:
        yield opened


def _values(settings: "Settings", *, needs_store: bool) -> Any:
    from dreamforge.embedded.layout import blob_settings_of, database_url_of  # noqa: PLC0415 - likewise
    from dreamforge.installation.opening import WorkshopValues  # noqa: PLC0415 - likewise

    return WorkshopValues(
        database_url=database_url_of(settings),
        models_root=settings.models_root,
        blobs=blob_settings_of(settings) if needs_store else None,
        hf_endpoint=settings.hf_endpoint,
        hf_token=settings.hf_token.get_secret_value() if settings.hf_token else None,
        civitai_endpoint=settings.civitai_endpoint,
        civitai_token=settings.civitai_token.get_secret_value() if settings.civitai_token else None,
        connections=settings.download_connections,
        stall_seconds=settings.download_stall_seconds,
    )


@contextmanager
def interruptible(console: Console, *, words: str, as_json: bool = False) -> Generator[Callable[[], None]]:
    """A block that Ctrl-C ends with one sentence and exit code 130, and foreseen trouble as `told_to` has it.

    Gives the ``check`` that other threads are to call: they end too.
    """
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        raise KeyboardInterrupt

    def check() -> None:
        if stopping.is_set():
            raise Cancelled

    before = signal.signal(signal.SIGINT, stop)
    try:
        with told_to(console):
            try:
                yield check
            except DreamForgeError as error:
                if stopping.is_set():
                    raise KeyboardInterrupt from error
                if as_json:
                    _print_error(error)
                raise
    except KeyboardInterrupt as error:
        tell_trouble(console, words)
        raise typer.Exit(EXIT_INTERRUPTED) from error
    finally:
        signal.signal(signal.SIGINT, before)


def _print_error(error: DreamForgeError) -> None:
    told = {"code": error.code, "message": error.message, "details": error.details, "suggestions": error.suggestions}
    print_line({"event": "error", **told})
