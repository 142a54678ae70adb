"""The command line's entry point. A command's module is imported when it is asked for: most need little of the rest."""

from importlib import import_module
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from dreamforge import __version__

if TYPE_CHECKING:
    from typer._click import Command, Context

COMMANDS = {
    name: f"dreamforge.cli.{name}"
    for name in (
        "up",
        "down",
        "status",
        "logs",
        "generate",
        "jobs",
        "dead",
        "artifacts",
        "image",
        "model",
        "sweep",
        "prepare",
    )
}
"""The module of each command, which has the command's name there."""


class _Commands(TyperGroup):
    """``COMMANDS``, and those that are registered in this module."""

    def list_commands(self, ctx: "Context") -> list[str]:
        return [*COMMANDS, *(name for name in super().list_commands(ctx) if name not in COMMANDS)]

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":
        if cmd_name not in self.commands:
            # A name that is not known may be meant to be any of them.
            for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
                self.add_command(_load(name), name)
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="dreamforge",
    cls=_Commands,
    help="Self-hosted image generation that loses nothing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Self-hosted image generation that loses nothing."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _load(name: str) -> "Command":
    found = getattr(import_module(COMMANDS[name]), name)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command


if __name__ == "__main__":
    app()
