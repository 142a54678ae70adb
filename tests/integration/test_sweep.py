"""Images and their rows compared, over a real store and a real database."""

import io
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from minio import Minio
from sqlalchemy import Engine, text

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.dispatch.sweep import LEAST_AGE, PREFIX, Found, find, remove
from dreamforge.errors import StorageUnavailable
from dreamforge.store.artifact_keys import ArtifactKeys
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.models import NewModel
from tests.integration.cli import command
from tests.integration.factories import Jobs, a_job, an_artifact, claimed

DATA = b"an image"
ROW, ORPHAN, ELSEWHERE = f"{PREFIX}row.png", f"{PREFIX}a/b/orphan.png", "another program's.png"


@dataclass
class Place:
    """A bucket of the test's own, and the rows."""

    settings: BlobSettings
    blobs: Blobs
    engine: Engine

    def look(self, *, later: timedelta = LEAST_AGE + timedelta(minutes=1)) -> Found:
        keys = ArtifactKeys(engine=self.engine)
        return find(blobs=self.blobs, keys=keys, now=lambda: datetime.now(UTC) + later)

    def sweep(self) -> Found:
        found = self.look()
        assert remove(found, blobs=self.blobs, keys=ArtifactKeys(engine=self.engine)) == len(found.orphans)
        return found

    def there(self) -> set[str]:
        return {key for key in (ROW, ORPHAN, ELSEWHERE) if self.blobs.exists(key)}


@pytest.fixture
def place(
    engine: Engine, model: NewModel, database_url: str, blob_settings: BlobSettings, request: pytest.FixtureRequest
) -> Place:
    """An image with its row, one without a row, and something that is none of ours."""
    settings = replace(blob_settings, bucket=f"sweep-{abs(hash(request.node.name)) % 10**9}")
    blobs = Blobs(settings)
    blobs.ensure_bucket()
    for key in (ROW, ORPHAN, ELSEWHERE):
        blobs.put(key, DATA, content_type="image/png")
    new = a_job(model, count=2)
    Jobs(database_url).submit(new)
    attempt = AttemptStore(engine=engine, fence=claimed(engine).fence)
    attempt.publish(replace(an_artifact(0), s3_key=ROW))
    return Place(settings, blobs, engine)


@pytest.mark.every_server
def test_what_no_row_leads_to_goes_and_nothing_else(place: Place) -> None:
    found = place.sweep()
    assert (found.objects, [orphan.key for orphan in found.orphans], found.missing) == (2, [ORPHAN], ())
    assert found.orphan_bytes == len(DATA)
    assert place.there() == {ROW, ELSEWHERE}
    assert place.sweep().orphans == ()


def test_what_is_younger_than_a_day_may_still_get_its_row(place: Place) -> None:
    assert place.look(later=LEAST_AGE - timedelta(minutes=1)).orphans == ()
    assert place.there() == {ROW, ORPHAN, ELSEWHERE}


def test_to_look_removes_nothing(place: Place) -> None:
    assert [orphan.key for orphan in place.look().orphans] == [ORPHAN]
    assert place.there() == {ROW, ORPHAN, ELSEWHERE}


def test_one_that_has_got_its_row_meanwhile_stays(place: Place, database_url: str, model: NewModel) -> None:
    found = place.look()
    new = a_job(model)
    Jobs(database_url).submit(new)
    AttemptStore(engine=place.engine, fence=claimed(place.engine).fence).publish(replace(an_artifact(0), s3_key=ORPHAN))
    assert remove(found, blobs=place.blobs, keys=ArtifactKeys(engine=place.engine)) == 0
    assert place.there() == {ROW, ORPHAN, ELSEWHERE}


def test_a_row_without_its_image_is_told_and_left(place: Place) -> None:
    place.blobs.remove([ROW])
    assert place.sweep().missing == (ROW,)
    assert place.sweep().missing == (ROW,)


def test_more_than_a_page_of_either(place: Place, engine: Engine, model: NewModel, database_url: str) -> None:
    many = 1100
    new = a_job(model, count=1)
    Jobs(database_url).submit(new)
    attempt = AttemptStore(engine=engine, fence=claimed(engine).fence)
    for number in range(many):
        place.blobs.put(f"{PREFIX}many/{number}", b"x", content_type="image/png")
    attempt.publish(replace(an_artifact(0), s3_key=f"{PREFIX}many/1099"))
    found = place.sweep()
    assert (found.objects, len(found.orphans), found.missing) == (many + 2, many, ())
    assert place.blobs.exists(f"{PREFIX}many/1099")


def test_a_store_that_is_away_costs_nothing(place: Place) -> None:
    place.blobs = Blobs(replace(place.settings, endpoint="http://127.0.0.1:1"))
    with pytest.raises(StorageUnavailable):
        place.sweep()


@pytest.fixture
def sweeps(place: Place, database_url: str) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command, for this place."""
    variables = {
        "DREAMFORGE_DATABASE_URL": database_url,
        "DREAMFORGE_S3_ENDPOINT": place.settings.endpoint,
        "DREAMFORGE_S3_ACCESS_KEY": place.settings.access_key,
        "DREAMFORGE_S3_SECRET_KEY": place.settings.secret_key,
        "DREAMFORGE_S3_BUCKET": place.settings.bucket,
        "DREAMFORGE_S3_REGION": place.settings.region,
    }

    def run(*arguments: str, **other: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, **variables, **other}
        return subprocess.run(
            command("sweep", *arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def aged(place: Place) -> None:
    """What the test's bucket holds is two days old: the server goes by what a client says of a file's time."""
    client = Minio(
        urlsplit(place.settings.endpoint).netloc,
        access_key=place.settings.access_key,
        secret_key=place.settings.secret_key,
        secure=False,
        region=place.settings.region,
    )
    then: dict[str, str | list[str] | tuple[str]] = {"mtime": str(time.time() - 2 * 86_400)}
    for key in (ROW, ORPHAN, ELSEWHERE):
        client.put_object(place.settings.bucket, key, io.BytesIO(DATA), length=len(DATA), metadata=then)


@pytest.mark.usefixtures("aged")
def test_the_command_says_what_it_found_and_did(
    place: Place, sweeps: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    result = sweeps("--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "1 of 2 objects belong to no job (8 B): nothing was removed.\n"
    assert place.there() == {ROW, ORPHAN, ELSEWHERE}
    told = {"objects": 2, "removed": 1, "orphans": [ORPHAN], "orphan_bytes": len(DATA), "missing": []}
    assert json.loads(sweeps("--json").stdout) == told
    assert place.there() == {ROW, ELSEWHERE}
    assert sweeps().stdout == "0 of 1 objects belong to no job (0 B).\n"
    place.blobs.remove([ROW])
    result = sweeps()
    assert result.returncode == 1
    assert f"{ROW} is not in the object store." in result.stderr


@pytest.mark.usefixtures("aged")
def test_where_most_would_go_somebody_must_say_so(
    place: Place, sweeps: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    with place.engine.begin() as connection:
        connection.execute(text("DELETE FROM artifacts"))
    result = sweeps()
    assert result.returncode == 1
    assert "2 of 2 objects that are a day old belong to no job of this database: is it the right one?" in result.stderr
    assert place.there() == {ROW, ORPHAN, ELSEWHERE}
    assert sweeps("--yes").stdout == "2 of 2 objects belong to no job (16 B); 2 were removed.\n"
    assert place.there() == {ELSEWHERE}


def test_a_command_that_cannot_reach_anything_says_so_in_a_sentence(
    sweeps: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    for wrong in (
        {"DREAMFORGE_S3_ENDPOINT": "http://127.0.0.1:1"},
        {"DREAMFORGE_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d"},
        {"DREAMFORGE_S3_SECRET_KEY": "guessed"},
    ):
        result = sweeps(**wrong)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
