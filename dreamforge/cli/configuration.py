"""The settings, and trouble with them, as commands meet both."""

import re
from collections.abc import Generator
from contextlib import contextmanager

import typer
from pydantic import ValidationError
from rich.console import Console

from dreamforge import settings as environment
from dreamforge.cli.wording import sentence
from dreamforge.client.errors import ClientError
from dreamforge.embedded.trouble import StackError
from dreamforge.errors import DreamForgeError, RequestError, StepError
from dreamforge.settings import Settings

# All but the end of a line.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def load_settings() -> Settings:
    """Read the settings. Raises ``StackError`` that names the variable that is wrong."""
    try:
        return environment.load()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        # What other programs read too has its own name already.
        variable = name if name.isupper() else f"DREAMFORGE_{name.upper()}"
        where = f"{variable}: " if name and name != "RAY_ADDRESS" else ""
        raise StackError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error


FORESEEN = (StackError, DreamForgeError, ClientError, OSError)
"""What ends a command with one sentence; anything else is a bug and shows its trace."""


def sentence_of(error: BaseException) -> str:
    """What a person is told of ``error``, which may say what a file or a server says."""
    return harmless(_words_of(error))


def _words_of(error: BaseException) -> str:
    match error:
        case RequestError() | StepError():
            # As `sentence` has it of those that come over HTTP.
            return f"{error.code}: {error.message}"
        case DreamForgeError():
            return error.message
        case ClientError():
            return sentence(error)
        case OSError(filename=str(name)):
            return f"{name}: {error.strerror}."
        case _:
            return str(error)


@contextmanager
def told_to(console: Console) -> Generator[None]:
    """A block whose foreseen trouble ends the command with one sentence and exit code 1."""
    try:
        yield
    except BrokenPipeError:
        # Whoever read has enough, as `head` has: click ends the command without a word.
        raise
    except FORESEEN as error:
        tell_trouble(console, sentence_of(error))
        raise typer.Exit(1) from error


def tell_trouble(console: Console, words: str) -> None:
    """Say what went wrong, in red."""
    # A message may hold brackets, which are no markup.
    console.print(f"✗ {harmless(words)}", style="red", highlight=False, soft_wrap=True, markup=False)


def harmless(text: str) -> str:
    """The text without what a terminal would obey: files and servers say what they like."""
    return _CONTROLS.sub("\ufffd", text)
