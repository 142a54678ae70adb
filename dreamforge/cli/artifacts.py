"""`dreamforge artifacts …`: images of jobs as files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from dreamforge.api.schemas import Artifact, Job
from dreamforge.cli.image_files import ImageFile, ImageFiles
from dreamforge.cli.service import JsonOption, UrlOption, print_json, service
from dreamforge.client import ApiError, Client

artifacts = typer.Typer(help="Get images of jobs as files.", no_args_is_help=True, add_completion=False)

_Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Jobs' or images' ids, whole.", show_default=False)]
_Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to save them.")]


@artifacts.callback()
def _group() -> None:
    """Keeps `pull` a command of its own although it is the only one."""


@artifacts.command("pull")
def pull(ids: _Ids, output: _Folder = Path(), as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Save the finished images of jobs, or single images, under the names that `generate` gives them.

    Their paths go to standard output, one a line. One that is there already, byte for byte, is not fetched again.
    """
    with service(url) as client:
        files = ImageFiles(client=client, folder=output, keeps_equal=True)
        # Before anything is saved: an id that is not there is told at once.
        wanted = [_found(client, given) for given in ids]
        files.prepare()
        saved: list[ImageFile] = []
        for job, artifact in wanted:
            for file in files.save_all(job) if artifact is None else _one(files, artifact, job):
                saved.append(file)
                if not as_json:
                    typer.echo(file.path)
    if as_json:
        print_json({"files": [file.as_json() for file in saved]})


def _one(files: ImageFiles, artifact: Artifact, job: Job) -> Iterator[ImageFile]:
    yield files.save(artifact, job)


def _found(client: Client, given: str) -> tuple[Job, Artifact | None]:
    """The job of an id, or the image and its job."""
    try:
        return client.get(given), None
    except ApiError as error:
        if error.code != "not_found":
            raise
    artifact = client.artifact(given)
    return client.get(artifact.job_id), artifact
