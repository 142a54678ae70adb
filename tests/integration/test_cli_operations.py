"""`dreamforge jobs retry`, `jobs delete`, `artifacts pull`, and a Ctrl-C while a job is being posted."""

import hashlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from dreamforge.api.state import ApiState
from dreamforge.client import Client
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.models import NewModel
from tests.integration.cli import command, environment, get, posted, ran, succeeded
from tests.integration.door import served
from tests.integration.factories import finish
from tests.relay import Relay
from tests.service import wait_for
from tests.terminal import CTRL_C, Terminal
from tests.web import web


@pytest.fixture
def url(state: ApiState, model: NewModel) -> Iterator[str]:
    assert model
    with served(state) as url:
        yield url


def test_a_job_is_retried_or_it_is_said_why_not(url: str, engine: Engine, object_store: ObjectStore) -> None:
    job = posted(url, count=3)
    refused = ran(url, "jobs", "retry", job["id"])
    assert refused.returncode == 1
    assert "Only a job that failed or was cancelled can be retried; this one is queued." in refused.stderr
    finish(engine, object_store.blobs(), count=1, of=3)
    said = succeeded(url, "jobs", "retry", job["id"])
    assert "The job is queued again; 2 images to draw." in said
    assert f"dreamforge jobs logs {job['id']} --follow" in said
    web.post(f"{url}{job['links']['cancel']}")
    assert json.loads(succeeded(url, "jobs", "retry", job["id"], "--json"))["status"] == "queued"


def test_a_job_is_deleted_by_those_who_mean_it(url: str) -> None:
    job = posted(url)
    assert "can be deleted; this one is queued" in ran(url, "jobs", "delete", job["id"], "--yes").stderr
    web.post(f"{url}{job['links']['cancel']}")
    unasked = ran(url, "jobs", "delete", job["id"])
    assert (unasked.returncode, "say --yes" in unasked.stderr) == (1, True)
    assert get(url, job["links"]["self"]).status_code == 200
    for answer, status in (("n", 200), ("y", 404)):
        with Terminal(command("jobs", "delete", job["id"]), environment=environment(url)) as terminal:
            terminal.wait_for("Delete the job and its images for good?")
            assert "a lighthouse at dawn" in terminal.screen()
            terminal.type(f"{answer}\n")
            assert terminal.wait_for_end() == (0 if answer == "y" else 1)
        assert get(url, job["links"]["self"]).status_code == status
    missing = ran(url, "jobs", "delete", job["id"], "--yes")
    assert (missing.returncode, "not_found" in missing.stderr) == (1, True)


def test_for_programs_a_deletion_is_one_object(url: str) -> None:
    job = posted(url)
    web.post(f"{url}{job['links']['cancel']}")
    assert json.loads(succeeded(url, "jobs", "delete", job["id"], "--yes", "--json")) == {"deleted": job["id"]}


def test_images_are_pulled_once_under_the_names_of_generate(
    url: str, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    job = posted(url, count=3)
    finish(engine, object_store.blobs(), count=3)
    folder = tmp_path / "new" / "folder"
    short = job["id"].replace("-", "")[-8:]
    names = [f"a-lighthouse-at-dawn-{seed}-{short}.png" for seed in range(3)]
    paths = succeeded(url, "artifacts", "pull", job["id"], "-o", folder).splitlines()
    assert paths == [str(folder / name) for name in names]
    assert [Path(path).read_bytes() for path in paths] == [b"image 0", b"image 1", b"image 2"]
    times = [Path(path).stat().st_mtime_ns for path in paths]
    (folder / names[1]).write_bytes(b"something else")
    (folder / names[2]).unlink()
    files = json.loads(succeeded(url, "artifacts", "pull", job["id"], "-o", folder, "--json"))["files"]
    assert [Path(file["path"]).name for file in files] == [names[0], names[1].replace(".png", "-2.png"), names[2]]
    assert [file["is_new"] for file in files] == [False, True, True]
    for file in files:
        assert file["checksum"] == f"sha256:{hashlib.sha256(Path(file['path']).read_bytes()).hexdigest()}"
    assert (folder / names[1]).read_bytes() == b"something else"
    assert Path(paths[0]).stat().st_mtime_ns == times[0]


def test_an_image_s_id_and_several_ids_pull_what_they_name(
    url: str, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    one, other = (posted(url, count=2) for _ in range(2))
    for _ in range(2):
        finish(engine, object_store.blobs(), count=2)
    with Client(url) as client:
        _, second = client.artifacts(one["id"])
    assert len(succeeded(url, "artifacts", "pull", str(second.id), "-o", tmp_path).splitlines()) == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"image 1"]
    paths = succeeded(url, "artifacts", "pull", str(second.id), other["id"], one["id"], "-o", tmp_path).splitlines()
    assert len(paths) == len(set(paths)) == len(list(tmp_path.iterdir())) == 4, "each is told once"


def test_an_unknown_id_is_told_before_anything_is_saved(
    url: str, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    job = posted(url)
    finish(engine, object_store.blobs(), count=1)
    for unknown in ("../../etc", "0192f0c1-0000-7000-8000-000000000000"):
        result = ran(url, "artifacts", "pull", job["id"], unknown, "-o", tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert "not_found" in result.stderr
    assert not list(tmp_path.iterdir())
    assert ran(url, "artifacts", "pull").returncode == 2


@pytest.mark.parametrize("answer", ["y", "n"])
def test_ctrl_c_while_a_job_is_posted_does_not_lose_sight_of_it(
    url: str, engine: Engine, tmp_path: Path, answer: str
) -> None:
    with Relay.before(url) as relay:
        typed = command("generate", "a fox", "-o", tmp_path, "--url", f"http://127.0.0.1:{relay.port}")
        with relay.frozen():
            terminal = Terminal(typed, environment=environment(url))
            terminal.__enter__()
            wait_for(lambda: _backlog(relay.port), what="the post")
            terminal.type(CTRL_C)
        try:
            terminal.wait_for("Cancel the job?")
            with engine.connect() as connection:
                id, status = connection.execute(text("SELECT id, status FROM jobs")).one()
            assert status == "queued", "and there is one"
            terminal.type(f"{answer}\n")
            assert terminal.wait_for_end() == 130
            told = "The job is cancelled" if answer == "y" else f"dreamforge jobs cancel {id}"
            assert told in terminal.screen()
        finally:
            terminal.__exit__()
        assert get(url, f"/v1/jobs/{id}").json()["status"] == ("cancelled" if answer == "y" else "queued")


def test_ctrl_c_while_the_service_is_away_tells_what_was_known_last(url: str, tmp_path: Path) -> None:
    with Relay.before(url) as relay:
        typed = command("generate", "a fox", "-o", tmp_path, "--json", "--url", f"http://127.0.0.1:{relay.port}")
        with subprocess.Popen(
            typed, env=environment(url), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            assert "queued" in process.stderr.readline()
            with relay.refusing():
                process.send_signal(signal.SIGINT)
                said, told = process.communicate(timeout=60)
        job = json.loads(said)["job"]
        assert (process.returncode, job["status"]) == (130, "queued")
        assert f"dreamforge jobs show {job['id']}" in told
        assert "✗" not in told


def test_a_cancel_that_does_not_arrive_is_said_so(url: str, tmp_path: Path) -> None:
    with Relay.before(url) as relay:
        typed = command("generate", "a fox", "-o", tmp_path, "--url", f"http://127.0.0.1:{relay.port}")
        with Terminal(typed, environment=environment(url)) as terminal:
            terminal.wait_for("queued")
            terminal.type(CTRL_C)
            terminal.wait_for("Cancel the job?")
            with relay.refusing():
                terminal.type("y\n")
                assert terminal.wait_for_end() == 130
            assert "The job may go on." in terminal.screen()
            assert "✗" in terminal.screen()


def test_a_reader_that_has_enough_is_no_trouble(url: str) -> None:
    job = posted(url)
    for format in ((), ("--json",)):
        with subprocess.Popen(
            command("jobs", "logs", job["id"], *format), env=environment(url), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == ""
        assert process.returncode == 1


def _backlog(port: int) -> bool:
    """True once somebody has sent something to the port: as the kernel tells of connections and their bytes."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if int(local.split(":")[1], 16) == port and state == "01" and int(queues.split(":")[1], 16) > 0:
            return True
    return False
