"""A model that the service is asked to download, while the command that asks is over at once."""

import typer
from rich.console import Console

from dreamforge.cli.service import print_json, service
from dreamforge.client.calls import ModelWish


def download_in_background(wish: ModelWish, *, as_json: bool, url: str | None) -> None:
    """Have the service download it; print the job and how to follow it."""
    with service(url) as client:
        job = client.download_model(
            wish.source,
            name=wish.name,
            version=wish.version,
            kind=wish.kind,
            default=wish.default,
            local_only=wish.local_only,
        )
    if as_json:
        print_json(job)
        return
    # The id alone is for whoever reads standard output.
    typer.echo(str(job.id))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"The service downloads it. Follow it: dreamforge jobs watch {job.id}", markup=False)
    console.print(f"Stop it: dreamforge jobs cancel {job.id}. What is there by then stays, for a retry.", markup=False)
