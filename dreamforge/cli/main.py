"""The command line's entry point."""

import typer

from dreamforge import __version__
from dreamforge.cli.down import down
from dreamforge.cli.logs import logs
from dreamforge.cli.status import status
from dreamforge.cli.up import up

app = typer.Typer(
    name="dreamforge",
    help="Self-hosted image generation that loses nothing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(up)
app.command()(down)
app.command()(status)
app.command()(logs)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


if __name__ == "__main__":
    app()
