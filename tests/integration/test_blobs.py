"""The bucket over real S3 servers: what is stored comes back, to those only who hold a key or a URL."""

import itertools
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from minio import Minio

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.errors import StorageUnavailable
from tests.running_stack import wait_for
from tests.web import web

pytestmark = pytest.mark.every_server

REFUSED = {400, 403, 412}
_numbers = itertools.count(1)


@pytest.fixture
def settings(blob_settings: BlobSettings) -> BlobSettings:
    """A bucket of the test's own, which is not there yet."""
    return replace(blob_settings, bucket=f"bucket-{next(_numbers)}")


@pytest.fixture
def blobs(settings: BlobSettings) -> Blobs:
    blobs = Blobs(settings)
    blobs.ensure_bucket()
    return blobs


def _url(blobs: Blobs, key: str, *, ttl: int = 60) -> str:
    return blobs.presign(key, ttl=ttl, content_type="image/png", filename="a b.png")


def test_what_was_put_is_read_by_its_url(blobs: Blobs) -> None:
    # The path of an image, and every byte there is.
    key, data = "dreamforge/default/jobs/0192/generate/20260101T000000000000Z_0_64x64_7.png", bytes(range(256)) * 4096
    blobs.put(key, data, content_type="image/png")
    answer = web.get(_url(blobs, key))
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == 'inline; filename="a b.png"'


def test_who_does_not_sign_is_refused(blobs: Blobs, settings: BlobSettings) -> None:
    blobs.put("key", b"private", content_type="image/png")
    for path in (f"{settings.bucket}/key", settings.bucket):
        answer = web.get(f"{settings.endpoint}/{path}")
        assert answer.status_code in REFUSED
        assert b"private" not in answer.content
    assert web.put(f"{settings.endpoint}/{settings.bucket}/key", content=b"forged").status_code in REFUSED
    assert web.get(_url(blobs, "key")).content == b"private"


def test_a_url_is_good_for_its_object_and_its_words_only(blobs: Blobs) -> None:
    for key in ("mine", "other"):
        blobs.put(key, key.encode(), content_type="image/png")
    url = _url(blobs, "mine")
    assert web.get(url).content == b"mine"
    last = "0" if url[-1] != "0" else "1"
    for forged in (
        url.replace("/mine?", "/other?"),
        url.replace("image%2Fpng", "text%2Fhtml"),
        url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
        url[:-1] + last,
    ):
        assert forged != url
        assert web.get(forged).status_code == 403
    assert web.delete(url).status_code == 403


def test_a_url_ends(blobs: Blobs) -> None:
    blobs.put("key", b"short", content_type="image/png")
    url, began = _url(blobs, "key", ttl=2), time.monotonic()
    assert web.get(url).status_code == 200
    wait_for(lambda: web.get(url).status_code in REFUSED, seconds=10, what="the URL's end")
    assert time.monotonic() - began > 1


def test_a_missing_bucket_is_told_and_made_once(settings: BlobSettings) -> None:
    blobs = Blobs(settings)
    with pytest.raises(StorageUnavailable, match="does not exist"):
        blobs.ping()
    with pytest.raises(StorageUnavailable, match="NoSuchBucket"):
        blobs.put("key", b"nowhere", content_type="image/png")
    blobs.ensure_bucket()
    blobs.put("key", b"kept", content_type="image/png")
    blobs.ensure_bucket()
    blobs.ping()
    assert web.get(_url(blobs, "key")).content == b"kept"


@pytest.mark.parametrize("wrong", [{"secret_key": "guessed"}, {"access_key": "stranger:stranger"}])
def test_a_wrong_key_is_told_and_opens_nothing(blobs: Blobs, settings: BlobSettings, wrong: dict[str, str]) -> None:
    blobs.put("key", b"private", content_type="image/png")
    stranger = Blobs(replace(settings, **wrong))
    for ask in (
        stranger.ping,
        stranger.ensure_bucket,
        lambda: stranger.put("key", b"forged", content_type="image/png"),
    ):
        with pytest.raises(StorageUnavailable, match="The object store answered "):
            ask()
    assert web.get(_url(stranger, "key")).status_code == 403
    assert web.get(_url(blobs, "key")).content == b"private"


def test_a_rehearsal_makes_the_bucket_and_leaves_nothing_in_it(settings: BlobSettings) -> None:
    Blobs(settings).rehearse()
    client = Minio(
        urlsplit(settings.endpoint).netloc,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        secure=False,
        region=settings.region,
    )
    assert client.bucket_exists(settings.bucket)
    assert not list(client.list_objects(settings.bucket, recursive=True))
