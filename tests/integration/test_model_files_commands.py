"""`dreamforge model download|verify|gc|publish` as a user meets them."""

import contextlib
import json
import os
import pickle
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dreamforge.blobs import Blobs
from dreamforge.cli.wording import size
from dreamforge.embedded.ports import free_port
from dreamforge.models.object_keys import model_file_key
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.models import ModelRegistry
from tests import weights
from tests.hubs.civitai import FakeCivitai, HubFile, HubVersion
from tests.hubs.hosting import LOGIN_PAGE, Fault, redirect
from tests.integration.cli import command
from tests.integration.installing import Place
from tests.terminal import CTRL_C, Terminal

SECRET = "secret_of_a_test"
SLOW = Fault(drip=0.1, drip_bytes=32_768)


def test_a_download_is_told_in_lines(place: Place) -> None:
    repo = place.add_checkpoint("org/xl")
    result = place.run("download", "hf:org/xl", "--name", "mine", "--version", "1")
    assert (result.exit_code, result.stdout) == (0, "")
    commit = place.hub.repos["org/xl"].head.id
    assert result.stderr.splitlines() == [
        f"hf:org/xl@{commit}: 1 file, 2.5 MB",
        "Downloading …",
        "  XL.safetensors, 2.5 MB",
        "Checking …",
        "Publishing …",
        "Registering …",
        f"✓ mine@1, sdxl, fp16, 2.5 MB, sha256 {repo.sha256[:12]}….",
        f"  It is in {place.root}/sdxl/mine@1, and in the object store, where other nodes fetch it.",
        "  Jobs that name no model take it.",
        '  Draw with it: dreamforge generate "a lighthouse at dawn"',
    ]
    assert "It was installed already." in place.done("download", "hf:org/xl", "--name", "mine", "--version", "1")


def test_a_download_is_told_in_json(place: Place) -> None:
    repo = place.add_checkpoint("org/xl")
    result = place.run("download", "hf:org/xl", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["phase"] for event in told if event["event"] == "phase"] == [
        "resolve", "download", "inspect", "publish", "register",
    ]  # fmt: skip
    (resolved,) = (event for event in told if event["event"] == "resolved")
    assert resolved["files"] == [{"path": "XL.safetensors", "size": repo.size, "sha256": repo.sha256}]
    done = {(event["phase"], event["done"], event["total"]) for event in told if event["event"] == "bytes"}
    assert {("download", repo.size, repo.size), ("publish", repo.size, repo.size)} <= done
    end = told[-1]
    assert (end["event"], end["name"], end["is_new"], end["is_published"]) == ("installed", "xl", True, True)
    assert end["downloaded_bytes"] == repo.size
    assert "parameters_schema" not in end, "it is a line, and for that there is `model show --json`"


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("org/xl", "invalid_request", "hf:"),
        ("hf:org/none", "source_not_found", "org/none"),
        ("file:/nowhere/at/all.safetensors", "source_not_found", "/nowhere/at/all.safetensors cannot be read here"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_sentence(place: Place, reference: str, code: str, words: str) -> None:
    place.hub.tokens.add("hf_secret")
    result = place.run("download", reference, "--json", HF_TOKEN="hf_secret")
    assert result.exit_code == 1
    error = json.loads(result.stdout.splitlines()[-1])
    assert (error["event"], error["code"]) == ("error", code)
    assert result.stderr.startswith(f"✗ {code}: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "hf_secret" not in result.stdout + result.stderr


def test_a_version_of_civitai_becomes_a_model(place: Place) -> None:
    body = weights.write(place.folder / "xl.safetensors", weights.sdxl_checkpoint()).read_bytes()
    with FakeCivitai() as civitai:
        civitai.tokens = {SECRET}
        file = HubFile("epic_xl.safetensors", body)
        version = civitai.add(HubVersion(1920523, 277058, [file], needs_token=True, model_name="Epic XL"))
        stored = version.stored[file.id]
        environment = {"DREAMFORGE_CIVITAI_ENDPOINT": civitai.endpoint}
        refused = place.run("download", "civitai:277058@1920523", **environment)
        assert refused.exit_code == 1
        assert refused.stderr.startswith("✗ source_forbidden: ")
        assert "DREAMFORGE_CIVITAI_TOKEN" in refused.stderr
        # The address breaks off, and has expired by then.
        stored.then(Fault(cut_after=len(body) // 2), Fault(status=403))
        told = {**environment, "DREAMFORGE_CIVITAI_TOKEN": SECRET}
        result = place.run("download", "civitai:urn:air:sdxl:checkpoint:civitai:277058@1920523", "--json", **told)
        assert result.exit_code == 0, result.stderr
        again = place.run("download", "civitai:277058", **told)
        assert "It was installed already." in again.stderr
        assert "Authorization" not in {name for asked in stored.requests for name in asked.headers}
        assert stored.bytes_sent == len(body)
    end = json.loads(result.stdout.splitlines()[-1])
    assert (end["name"], end["version"], end["kind"]) == ("Epic-XL", "1920523", "sdxl")
    assert (end["source_uri"], end["is_published"]) == ("civitai:277058@1920523", True)
    assert end["metadata"]["civitai"]["model_version_id"] == 1920523
    assert Path(end["folder"], "epic_xl.safetensors").read_bytes() == body
    _is_told_nowhere(place, result.stdout + result.stderr + again.stderr)


def test_a_file_of_the_web_becomes_a_model(place: Place) -> None:
    body = weights.write(place.folder / "vae.safetensors", weights.vae()).read_bytes()
    hosted = place.hub.storage.add("files/my vae.safetensors", body)
    gate = place.hub.storage.add("gate/my vae.safetensors", b"")
    gate.fault = redirect(hosted.url)
    reference = f"{gate.url}#sha256={hosted.sha256}"
    hosted.then(LOGIN_PAGE, LOGIN_PAGE)
    refused = place.run("download", reference)
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1].startswith("✗ source_forbidden: 127.0.0.1 answers with a page (text/html)")
    wrong = place.run("download", f"{gate.url}#sha256={'0' * 64}")
    assert wrong.exit_code == 1
    assert wrong.stderr.splitlines()[-1].startswith(
        "✗ download_corrupt: my vae.safetensors is not what its source said"
    )
    assert not place.files()
    said = place.done("download", reference)
    assert f"✓ my-vae@{hosted.sha256[:12]}, vae, " in said
    assert "It was installed already." in place.done("download", reference)
    folder = place.root / "vae" / f"my-vae@{hosted.sha256[:12]}"
    assert (folder / "my vae.safetensors").read_bytes() == body
    assert json.loads((folder / "descriptor.json").read_text())["source_uri"] == reference


def test_an_address_with_a_secret_in_it_is_refused_and_not_repeated(place: Place) -> None:
    for secret in (f"https://me:{SECRET}@host/x.safetensors", f"https://host/x.safetensors?token={SECRET}"):
        result = place.run("download", f"{secret}#sha256={'0' * 64}", "--json")
        assert result.exit_code == 1
        assert "✗ invalid_request: That address has a password or a token in it" in result.stderr
        _is_told_nowhere(place, result.stdout + result.stderr)


def _is_told_nowhere(place: Place, printed: str) -> None:
    """The token: not on the terminal, not beside the model, not in the registry."""
    assert SECRET not in printed
    assert not [path for path in place.files() if SECRET.encode() in path.read_bytes()]
    with place.workshop() as workshop:
        assert SECRET not in str(workshop.registry.installed())
        assert SECRET not in str(workshop)


def test_without_a_store_only_what_stays_here_can_be_installed(place: Place) -> None:
    place.add_checkpoint("org/xl")
    result = place.run("download", "hf:org/xl", DREAMFORGE_S3_ENDPOINT="")
    assert result.exit_code == 1
    assert "DREAMFORGE_S3_ENDPOINT names no object store" in result.stderr
    kept = place.run("download", "hf:org/xl", "--local-only", DREAMFORGE_S3_ENDPOINT="")
    assert kept.exit_code == 0, kept.stderr
    assert "on this machine alone" in kept.stderr


def test_on_a_terminal_there_are_bars_and_ctrl_c_stops_in_time(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    stored.fault = SLOW
    line = command("model", "download", "hf:org/xl")
    with Terminal(line, environment=place.environment()) as terminal:
        terminal.wait_for("/2.5 MB")
        terminal.type(CTRL_C)
        pressed = time.monotonic()
        assert terminal.wait_for_end() == 130
        assert time.monotonic() - pressed < 10
        assert "Stopped. What was downloaded stays: the same command goes on from there." in terminal.screen()
        assert "Traceback" not in terminal.screen()
    with place.workshop() as workshop:
        assert workshop.leases.live(workshop.shelf.place()) == set(), "nobody has to wait for whom it stopped"
    stored.fault = Fault()
    with Terminal(line, environment=place.environment()) as terminal:
        assert terminal.wait_for_end() == 0
        assert "✓ xl@" in terminal.screen()


def test_damage_is_found_and_mended_from_the_store(place: Place, engine: Engine) -> None:
    stored = place.add_checkpoint("org/xl")
    one = place.install("hf:org/xl", name="one", version="1")
    two = place.install("hf:org/xl", name="two", version="1")
    assert place.done("verify").count("each as it was") == 2
    # One file that both have, and the blobs.
    _damage(one.folder / "XL.safetensors")
    (two.folder / "XL.safetensors").unlink()
    sent = stored.bytes_sent
    result = place.run("verify", "--json")
    assert result.exit_code == 0, result.stderr
    items = {item["reference"]: item for item in json.loads(result.stdout)["items"]}
    assert {name: item["state"] for name, item in items.items()} == {"one@1": "repaired", "two@1": "repaired"}
    assert items["one@1"]["files"] == [
        {
            "path": "XL.safetensors",
            "state": "repaired",
            "problem": "has other bytes than it had",
            "repaired_from": "the object store",
        }
    ]
    assert items["two@1"]["files"][0]["problem"] == "is gone"
    body = place.hub.repos["org/xl"].head.body("XL.safetensors")
    for installed in (one, two):
        assert (installed.folder / "XL.safetensors").read_bytes() == body
    assert (one.folder / "XL.safetensors").samefile(two.folder / "XL.safetensors")
    assert stored.bytes_sent == sent
    assert not place.files("partial")
    assert ModelRegistry(engine=engine).installed()


def test_what_is_damaged_in_the_store_too_is_mended_from_the_source(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    installed = place.install("hf:org/xl", version="1")
    key, body = model_file_key(stored.sha256), place.hub.repos["org/xl"].head.body("XL.safetensors")
    blobs = Blobs(place.blobs)
    blobs.put(key, body[:-6] + b"damage", content_type="application/octet-stream")
    _damage(installed.folder / "XL.safetensors")
    assert f"brought anew from {installed.descriptor.source_uri}." in place.done("verify", "xl")
    assert (installed.folder / "XL.safetensors").read_bytes() == body
    # By its size the store's is right.
    assert "it was there already" in place.done("publish", "xl")
    assert f"{size(stored.size)} sent" in place.done("publish", "xl", "--again")
    with contextlib.closing(blobs.open(key)) as blob:
        assert blob.read(len(body)) == body


def test_a_file_that_cannot_be_mended_keeps_no_other_from_it(place: Place, tiny_model: Path) -> None:
    repo = place.hub.add("org/tiny", tiny_model, build="StableDiffusionXLPipeline")
    installed = place.install("hf:org/tiny", version="1")
    first, last = "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"
    stored = repo.head.stored[first]
    Blobs(place.blobs).remove([model_file_key(stored.sha256)])
    stored.fault = Fault(status=404)
    for path in (first, last):
        _damage(installed.folder / path)
    result = place.run("verify", "tiny", "--json")
    assert result.exit_code == 1
    (item,) = json.loads(result.stdout)["items"]
    states = {file["path"]: file["state"] for file in item["files"] if file["state"] != "ok"}
    assert states == {first: "damaged", last: "repaired"}


def test_damage_is_mended_from_the_source_where_nothing_is_published(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    installed = place.install("hf:org/xl", version="1", is_local_only=True)
    # The branch moves; the commit that was installed stays.
    place.add_checkpoint("org/xl", fill=b"other")
    _damage(installed.folder / "XL.safetensors")
    said = place.done("verify", "xl")
    assert "✓ xl@1: repaired." in said
    assert f"XL.safetensors has other bytes than it had; brought anew from {installed.descriptor.source_uri}." in said
    assert stored.bytes_sent == 2 * stored.size

    _damage(installed.folder / "XL.safetensors")
    del place.hub.repos["org/xl"]
    result = place.run("verify", "xl")
    assert result.exit_code == 1
    assert "✗ xl@1 is damaged." in result.stderr
    assert "has other bytes than it had, and is not to be had: " in result.stderr


def test_damage_outside_of_the_models_folder_is_told_and_left(place: Place, tmp_path: Path) -> None:
    path = weights.write(tmp_path / "mine.safetensors", weights.vae())
    place.done("import", path)
    assert "each as it was" in place.done("verify", "mine")
    assert "is in the object store" in place.done("publish", "mine")
    _damage(path)
    before = path.read_bytes()
    result = place.run("verify", "mine")
    assert result.exit_code == 1
    assert "put it back, or import it again" in result.stderr
    assert path.read_bytes() == before
    refused = place.run("publish", "mine")
    assert (refused.exit_code, "is there already" in refused.stderr) == (0, False), "what is stored is still right"
    path.unlink()
    assert "is gone" in place.run("verify", "mine").stderr


def test_what_was_changed_since_its_import_is_not_published(place: Place, tmp_path: Path) -> None:
    path = weights.write(tmp_path / "mine.safetensors", weights.vae())
    place.done("import", path)
    _damage(path)
    refused = place.run("publish", "mine")
    assert refused.exit_code == 1
    assert "✗ model_corrupt: mine.safetensors is not what it was" in refused.stderr
    assert list(Blobs(place.blobs).list("models/")) == []


def test_what_nobody_needs_goes_and_nothing_else(place: Place, engine: Engine, tmp_path: Path) -> None:
    kept = place.install(f"file:{weights.write(tmp_path / 'kept.safetensors', weights.vae())}")
    place.add_checkpoint("org/xl")
    gone = place.install("hf:org/xl", version="1")
    half = place.add_checkpoint("org/half")
    half.fault = Fault(flips=-1, cut_after=500_000)
    with place.workshop() as workshop:
        part = workshop.shelf.partial(f"sha256-{half.sha256}")
        part.write_bytes(b"x" * 500_000)
        held = workshop.shelf.partial("sha256-held")
        held.write_bytes(b"x" * 1000)
        lease = DownloadLeases(engine=engine, seconds=600).take(workshop.shelf.place(), "sha256-held", owner="me")
        # What is not ours: somebody's own folder, and what another program keeps there.
        own = place.root / "sdxl" / "mine@1" / "model_index.json"
        own.parent.mkdir(parents=True)
        own.write_text("{}")
        assert "dreamforge model gc" in place.done("remove", "xl@1", "--yes")
        dry = place.done("gc", "--dry-run")
        assert f"  partial download: partial/{part.name}, 500 KB" in dry
        assert "  forgotten model: sdxl/xl@1, " in dry
        assert "  file of no model: blobs/sha256/" in dry
        assert "MB in all, and nothing was removed. To remove it: dreamforge model gc" in dry
        assert (part.exists(), gone.folder.exists()) == (True, True)
        asked = place.run("gc")
        assert (asked.exit_code, part.exists()) == (1, True)
        assert "say --yes" in asked.stderr
        assert "MB freed." in place.done("gc", "--yes")
        assert (part.exists(), gone.folder.exists(), held.exists(), own.exists()) == (False, False, True, True)
        assert lease
    assert not [path for path in place.files("blobs/sha256") if path.name == gone.descriptor.checkpoint_hash]
    assert "each as it was" in place.done("verify", kept.descriptor.name)
    # Somebody may be about to register it: for a day it stays.
    assert Blobs(place.blobs).size_of(model_file_key(gone.descriptor.checkpoint_hash))


def test_what_a_link_in_the_folder_leads_to_is_left_alone(place: Place, tmp_path: Path) -> None:
    """Somebody has moved a model to another disk, and linked it."""
    place.add_checkpoint("org/xl")
    folder = place.install("hf:org/xl", version="1").folder
    moved = folder.rename(tmp_path / "moved")
    folder.symlink_to(moved)
    (place.root / "partial" / "model-link").symlink_to(moved)
    place.done("remove", "xl@1", "--yes")
    os.utime(moved, (0, 0))  # older than whatever somebody may be at work on
    assert "partial/model-link" in place.done("gc", "--yes")
    assert folder.is_symlink()
    assert (moved / "XL.safetensors").exists()
    assert not list((place.root / "partial").iterdir())


def test_a_store_that_is_away_does_not_keep_the_disk_full(place: Place) -> None:
    with place.workshop() as workshop:
        part = workshop.shelf.partial("sha256-half")
    part.write_bytes(b"x" * 100_000)
    result = place.run("gc", "--yes", DREAMFORGE_S3_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert (result.exit_code, part.exists()) == (0, False)
    assert "The object store is left as it is" in result.stderr


def test_pickles_are_refused_with_what_to_do(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"a": 1}))
    result = place.run("download", f"file:{path}")
    assert result.exit_code == 1
    assert "Pickles can run programs" in result.stderr
    disguised = path.rename(tmp_path / "evil.safetensors")
    result = place.run("download", f"file:{disguised}")
    assert result.exit_code == 1
    assert "is a pickle" in result.stderr
    assert not (place.root / "sdxl").exists()


def _damage(path: Path) -> None:
    """Change bytes of the weights, and neither the size nor the time."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(b"damage")
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
