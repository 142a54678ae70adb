"""The command line's entry point."""

import typer

from dreamforge import __version__
from dreamforge.cli.artifacts import artifacts
from dreamforge.cli.down import down
from dreamforge.cli.generate import generate
from dreamforge.cli.jobs import jobs
from dreamforge.cli.logs import logs
from dreamforge.cli.models import models
from dreamforge.cli.prepare import prepare
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
app.command()(generate)
app.add_typer(jobs, name="jobs")
app.add_typer(artifacts, name="artifacts")
app.add_typer(models, name="models")
app.command()(prepare)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


if __name__ == "__main__":
    app()
