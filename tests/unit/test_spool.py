"""Images on a node's disk: whole, of this step, and of a seed that is still right, or none."""

import json
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from dreamforge.worker.spool import EncodedImage, Spool

IMAGE = EncodedImage(
    item_index=3, seed=7, width=8, height=8, timings={"denoise": 1.5}, metadata={"a": [1]}, data=b"PNG" * 1000
)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", step_id=uuid.uuid4())


def _folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "spool").iterdir()
    return folder


def test_what_is_kept_comes_back_as_it_was_until_it_is_dropped(spool: Spool, tmp_path: Path) -> None:
    spool.keep(IMAGE)
    assert spool.kept({3: 7, 4: None}) == [IMAGE]
    assert spool.kept({3: None}) == [IMAGE], "nobody had written that it was begun"
    assert _folder(tmp_path).stat().st_mode & 0o777 == 0o700
    spool.drop(3)
    assert spool.kept({3: 7}) == []
    assert not list(_folder(tmp_path).iterdir())


def test_an_image_that_is_not_wanted_is_not_given(spool: Spool) -> None:
    spool.keep(IMAGE)
    assert spool.kept({3: 8}) == [], "another attempt draws it with another seed"
    assert spool.kept({4: None}) == []


def test_the_last_one_counts(spool: Spool) -> None:
    spool.keep(IMAGE)
    later = replace(IMAGE, seed=8, data=b"other")
    spool.keep(later)
    assert spool.kept({3: None}) == [later]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("3.image", b"PNG"),
        ("3.json", b""),
        ("3.json", b"[]"),
        ("3.json", b'{"item_index": 3}'),
        ("3.json", b"\xff"),
    ],
    ids=["torn image", "empty", "another shape", "half", "no text"],
)
def test_one_that_was_not_written_to_its_end_is_none(spool: Spool, tmp_path: Path, name: str, content: bytes) -> None:
    spool.keep(IMAGE)
    (_folder(tmp_path) / name).write_bytes(content)
    assert spool.kept({3: 7}) == []


def test_a_day_later_it_is_swept(spool: Spool, tmp_path: Path) -> None:
    spool.keep(IMAGE)
    spool.sweep()
    assert spool.kept({3: 7})
    yesterday = time.time() - 90_000
    os.utime(_folder(tmp_path), (yesterday, yesterday))
    Spool(tmp_path / "spool", step_id=uuid.uuid4()).sweep()
    assert not list((tmp_path / "spool").iterdir())


def test_a_folder_that_cannot_be_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    spool = Spool(tmp_path / "spool", step_id=uuid.uuid4())
    spool.sweep()
    spool.keep(IMAGE)
    spool.drop(3)
    assert spool.kept({3: 7}) == []


def test_one_that_was_kept_before_there_were_several_formats_is_a_png(spool: Spool, tmp_path: Path) -> None:
    spool.keep(replace(IMAGE, format="webp"))
    assert [image.format for image in spool.kept({3: 7})] == ["webp"]
    path = _folder(tmp_path) / "3.json"
    description = json.loads(path.read_text())
    del description["format"]
    path.write_text(json.dumps(description))
    assert spool.kept({3: 7}) == [IMAGE]
    assert IMAGE.format == "png"
