"""Objects in S3: the bytes of images. Any store that speaks S3 with SigV4 will do."""

import contextlib
import io
import re
import threading
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from dreamforge.errors import StorageUnavailable

MOST_CONNECTIONS = 32
"""Connections that are kept open; who asks for more at a time gets one that is used once."""
_CONNECT_TIMEOUT = 2.0
_PING_TIMEOUT = 2.0
_READ_TIMEOUT = 20.0
_LEAST_RATE = 128 * 1024
"""Bytes a second that a store takes at least."""
_REQUEST_TIMEOUT = 10.0
"""Seconds that a client's request waits for the store's next bytes."""


_PART = 16 * 1024 * 1024
"""Bytes of a large object that are sent at once: S3 takes 10,000 parts, of 5 MiB at least."""


@dataclass(frozen=True)
class BlobSettings:
    """Where the store is: ``endpoint`` as the service reaches it, ``public_endpoint`` as clients do."""

    endpoint: str
    public_endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    region: str


@contextmanager
def _storage_errors() -> Generator[None]:
    try:
        yield
    except S3Error as error:
        raise _answered(str(error.code)) from error
    except InvalidResponseError as error:
        raise _answered(_code(error)) from error
    except ServerError as error:
        raise _answered(f"status {error.status_code}") from error
    except (ParseError, UnicodeDecodeError) as error:
        raise _answered("something that is no S3") from error
    except (MinioException, HTTPError, OSError) as error:
        raise StorageUnavailable from error


def _answered(what: str) -> StorageUnavailable:
    return StorageUnavailable(f"The object store answered {what}.", details={"code": what})


def _code(error: InvalidResponseError) -> str:
    """S3's code in an answer that the client takes for none: it reads `application/xml` only, not `text/xml`."""
    code = re.search(r"<Code>(\w{1,64})</Code>", str(error))
    if code:
        return code[1]
    status = re.search(r"Response code: (\d{3}), Content-Type: ([\w/+.-]{0,64})", str(error))
    return f"status {status[1]} and {status[2]}, as no S3 server does" if status else "something that is no S3"


class _Connections(urllib3.PoolManager):
    """Waits for an answer the longer, the more was sent: ``read_timeout`` seconds and its time at the least rate."""

    def __init__(self, *, read_timeout: float) -> None:
        self._read_timeout = read_timeout
        super().__init__(retries=False, maxsize=MOST_CONNECTIONS)

    def urlopen(  # pyright: ignore[reportIncompatibleMethodOverride] - it is so in urllib3 itself
        self, method: str, url: str, redirect: bool = True, **more: Any
    ) -> BaseHTTPResponse:
        sent = len(more.get("body") or b"")
        more["timeout"] = urllib3.Timeout(connect=_CONNECT_TIMEOUT, read=self._read_timeout + sent / _LEAST_RATE)
        return super().urlopen(method, url, redirect=redirect, **more)


def _client(settings: BlobSettings, endpoint: str, *, read_timeout: float) -> Minio:
    parts = urlsplit(endpoint)
    return Minio(
        parts.netloc,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        secure=parts.scheme == "https",
        # Without a region the client asks the server for one, even to sign a URL.
        region=settings.region,
        http_client=_Connections(read_timeout=read_timeout),
    )


class Readable(Protocol):
    """What can be sent: a file, or what reads one."""

    def read(self, most: int = -1, /) -> bytes:
        """The next bytes, at most so many; none at the end."""
        ...


class _Reading:
    """A file that is being sent: what goes wrong with it is no trouble of the store's."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def read(self, most: int = -1) -> bytes:
        try:
            return self._stream.read(most)
        except Exception as error:
            self.error = error
            raise


class Blob:
    """An object that is being read; ``size`` in bytes. Close it: it holds a connection."""

    def __init__(self, answer: BaseHTTPResponse) -> None:
        self._answer = answer
        # A read that ends while another thread closes would give an open connection back, with what was not read in it.
        self._lock = threading.Lock()
        self.size = int(answer.headers.get("Content-Length") or -1)

    def read(self, most: int) -> bytes:
        """The next bytes, at most so many; none at the end. Raises ``StorageUnavailable`` when the store goes away."""
        with self._lock, _storage_errors():
            return self._answer.read(most)

    def close(self) -> None:
        """Give the connection back: to be used again when everything was read, else closed."""
        with self._lock:
            with contextlib.suppress(HTTPError, OSError, ValueError):
                self._answer.close()
            self._answer.release_conn()


@dataclass(frozen=True)
class StoredObject:
    """What a listing tells of an object; ``changed_at`` by the store's clock."""

    key: str
    size_bytes: int
    changed_at: datetime


class Blobs:
    """One private bucket. Raises ``StorageUnavailable`` when the store is away or refuses.

    ``read_timeout``: seconds until an answer begins, besides those that what was sent may take.
    """

    def __init__(self, settings: BlobSettings, *, read_timeout: float = _READ_TIMEOUT) -> None:
        self._bucket = settings.bucket
        self._region = settings.region
        self._endpoint = settings.endpoint
        self._client = _client(settings, settings.endpoint, read_timeout=read_timeout)
        # A presigned URL signs the host, so it is made for the address that clients use.
        self._public = _client(settings, settings.public_endpoint, read_timeout=read_timeout)
        self._asked = _client(settings, settings.endpoint, read_timeout=min(read_timeout, _REQUEST_TIMEOUT))
        self._pinged = _client(settings, settings.endpoint, read_timeout=min(read_timeout, _PING_TIMEOUT))

    def ensure_bucket(self) -> None:
        """Make the bucket when it is not there."""
        with _storage_errors():
            if not self._client.bucket_exists(self._bucket):
                self._client.make_bucket(self._bucket, location=self._region)

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store an object, whole."""
        with _storage_errors():
            self._client.put_object(self._bucket, key, io.BytesIO(data), length=len(data), content_type=content_type)

    def put_file(self, key: str, stream: Readable, *, size: int) -> None:
        """Store an object of ``size`` bytes from a file, a part after the other; it is there when all of them are.

        What ``stream`` raises passes, and leaves no object.
        """
        reading = _Reading(stream)
        try:
            with _storage_errors():
                self._client.put_object(
                    self._bucket, key, cast(BinaryIO, reading), length=size, part_size=_PART, num_parallel_uploads=1
                )
        except StorageUnavailable as error:
            if reading.error is not None:
                raise reading.error from error
            raise

    def open(self, key: str) -> Blob:
        """Begin to read an object; the caller closes it."""
        with _storage_errors():
            return Blob(self._asked.get_object(self._bucket, key))

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; one that is not there is no trouble. Ends at the first that the store does not remove."""
        with _storage_errors():
            for key in keys:
                self._asked.remove_object(self._bucket, key)

    def list(self, prefix: str) -> Iterator["StoredObject"]:
        """Every object whose key begins with ``prefix``, in pages as they are read."""
        with _storage_errors():
            for found in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                if found.object_name and not found.is_dir and found.last_modified is not None:
                    yield StoredObject(found.object_name, int(found.size or 0), found.last_modified)

    def exists(self, key: str) -> bool:
        """True when there is an object."""
        return self.size_of(key) is not None

    def size_of(self, key: str) -> int | None:
        """The bytes of an object, None when there is none."""
        with _storage_errors():
            try:
                return int(self._asked.stat_object(self._bucket, key).size or 0)
            except S3Error as error:
                if error.code in {"NoSuchKey", "NoSuchObject"}:
                    return None
                raise

    def presign(self, key: str, *, ttl: int, content_type: str, filename: str, begin: datetime | None = None) -> str:
        """A URL that reads the object for ``ttl`` seconds from ``begin`` on, which is now. The store is not asked.

        ``begin`` is in UTC, and of whole seconds: what is less the URL does not tell.
        """
        return self._public.presigned_get_object(
            self._bucket,
            key,
            expires=timedelta(seconds=ttl),
            request_date=begin,
            response_headers={
                "response-content-type": content_type,
                "response-content-disposition": f'inline; filename="{filename}"',
            },
        )

    @property
    def endpoint(self) -> str:
        """Where the service reaches the store: `http://host:port`."""
        return self._endpoint

    def presign_internal(self, key: str, *, ttl: int) -> str:
        """The same for the service's own nodes, at ``endpoint``."""
        return self._client.presigned_get_object(self._bucket, key, expires=timedelta(seconds=ttl))

    def ping(self) -> None:
        """Return when the store answers, within two seconds, and the bucket is there."""
        with _storage_errors():
            if not self._pinged.bucket_exists(self._bucket):
                raise StorageUnavailable(f"The bucket {self._bucket!r} does not exist.")

    def rehearse(self) -> None:
        """Make the bucket when it is not there, write an object, read it and remove it again."""
        self.ensure_bucket()
        key, data = f"dreamforge/probe/{uuid.uuid4()}", uuid.uuid4().bytes
        self.put(key, data, content_type="application/octet-stream")
        with _storage_errors():
            answer = self._client.get_object(self._bucket, key)
            try:
                kept = answer.read(len(data) + 1)
            finally:
                answer.close()
                answer.release_conn()
            if kept != data:
                raise StorageUnavailable("The object store does not give back what it was given.")
            self._client.remove_object(self._bucket, key)
