"""`dreamforge prepare`: what `serve deploy` expects to find, in servers that `dreamforge up` did not start."""

from typing import Annotated

import typer
from rich.console import Console

from dreamforge.cli.configuration import load_settings, told_to
from dreamforge.embedded.external import require_external
from dreamforge.embedded.layout import blob_settings, prepare_data_dir
from dreamforge.embedded.preparation import prepare_service
from dreamforge.embedded.report import Report
from dreamforge.embedded.trouble import StackError
from dreamforge.settings import Settings

PREPARE_LOG = "prepare.log"


def prepare(
    model: Annotated[
        bool, typer.Option(help="Install the built-in model where none is installed. Needs the gpu-node extra.")
    ] = True,
) -> None:
    """Prepare servers of your own for `serve deploy`: migrate the schema, make the bucket, install a first model.

    For before the first deployment and after each update. It changes nothing that is there already.
    """
    console = Console()
    with told_to(console):
        settings = load_settings()
        database_url = _require_servers(settings)
        report = Report(console=console, log=prepare_data_dir(settings) / "logs" / PREPARE_LOG)
        blobs = blob_settings(settings)
        with report.part("Servers of yours", "asking whether they let us in"):
            # Ray is asked by `serve deploy`; on a node of a cluster RAY_ADDRESS may name its GCS instead.
            require_external(settings.model_copy(update={"ray_address": None}), blobs, ray_token=None)
        notice = prepare_service(settings, database_url=database_url, blobs=blobs, report=report, with_model=model)
        if notice:
            report.say(f"\n[yellow]{notice}[/yellow]")
        report.say("\nReady for [bold]serve deploy serve_config.yaml[/bold].")


def _require_servers(settings: Settings) -> str:
    needed = {
        "DREAMFORGE_DATABASE_URL": settings.database_url,
        "DREAMFORGE_REDIS_URL": settings.redis_url,
        "DREAMFORGE_S3_ENDPOINT": settings.s3_endpoint,
    }
    missing = [name for name, value in needed.items() if not value]
    if missing or settings.database_url is None:
        raise StackError(
            f"Not set: {', '.join(missing)}. A cluster needs servers of yours; `dreamforge up` starts its own."
        )
    return settings.database_url.get_secret_value()
