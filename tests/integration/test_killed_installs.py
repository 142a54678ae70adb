"""`kill -9` at every moment of an installation, and the same command again."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from dreamforge.blobs import Blobs
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.models.object_keys import model_file_key
from dreamforge.store.engine import open_engine
from dreamforge.store.models import ModelRegistry
from tests.hubs.hosting import Fault
from tests.hubs.huggingface import FakeHuggingFace
from tests.integration.installing import Place, a_bucket
from tests.integration.killed_installs import MOMENTS


@pytest.fixture(scope="module")
def place(database_url: str, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What those who were killed have left."""
    blobs = a_bucket(object_store.settings())
    Blobs(blobs).ensure_bucket()
    with FakeHuggingFace() as hub:
        place = Place(database_url, blobs, hub, tmp_path_factory.mktemp("killed"))
        for moment in MOMENTS:
            place.add_checkpoint(f"org/{moment}")
        # Some seconds: how far it is gets written down once a second.
        place.hub.repos["org/downloading"].head.stored["XL.safetensors"].fault = Fault(drip=0.1, drip_bytes=65_536)
        told = {
            "database_url": database_url,
            "blobs": asdict(blobs),
            "endpoint": hub.endpoint,
            "root": str(place.root),
        }
        program = [sys.executable, "-m", "tests.integration.killed_installs", json.dumps(told)]
        subprocess.run(program, check=True, timeout=120)
        yield place


@pytest.mark.parametrize("moment", MOMENTS)
def test_who_was_killed_has_left_nothing_by_half_and_the_next_try_finishes(place: Place, moment: str) -> None:
    engine = open_engine(place.database_url, application="tests", pool_size=1)
    try:
        registry = ModelRegistry(engine=engine)
        named = {model.name for model in registry.installed()}
        assert (moment in named) is (moment == "registered"), "registered when it was published, not before"
        repo = place.hub.repos[f"org/{moment}"].head
        stored = repo.stored["XL.safetensors"]
        installed = place.install(f"hf:org/{moment}")
        assert installed.was_there is (moment == "registered")
        assert installed.is_published
        assert (installed.folder / "XL.safetensors").read_bytes() == repo.body("XL.safetensors")
        assert Blobs(place.blobs).size_of(model_file_key(stored.sha256)) == stored.size
        (model,) = (model for model in registry.installed() if model.name == moment)
        assert [file.sha256 for file in model.files] == [stored.sha256]
        assert not [path for path in place.files("partial") if moment in str(path) or stored.sha256 in str(path)]
        # What was whole is not fetched again; of what was half, the rest and what was on its way.
        assert stored.bytes_sent < 1.5 * stored.size
    finally:
        engine.dispose()
