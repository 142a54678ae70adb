"""Servers that are not ours: asked before anything is started whether they let us in, and do what we need."""

import httpx2
from redis.exceptions import RedisError

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.embedded.address import Address
from dreamforge.embedded.ray_head import authorization
from dreamforge.embedded.trouble import StackError
from dreamforge.errors import DatabaseUnavailable, QueueUnavailable, StorageUnavailable
from dreamforge.queue import rehearse
from dreamforge.settings import Settings
from dreamforge.store.inspection import inspect, known_schemas, objection

_SECONDS = 4.0
"""For each answer of a server that says nothing at all."""
_HTTP = ("http", "https")


def require_external(settings: Settings, blobs: BlobSettings, *, ray_token: str | None) -> None:
    """Ask each server that a setting names. Raises ``StackError`` with the setting and the server's own words."""
    if settings.database_url:
        _ask_postgres(settings.database_url.get_secret_value())
    if settings.redis_url:
        _ask_redis(settings.redis_url.get_secret_value())
    if settings.s3_endpoint:
        _ask_object_store(settings.s3_endpoint, blobs)
    if settings.ray_address:
        _ask_ray(settings.ray_address, token=ray_token)


def _ask_postgres(url: str) -> None:
    address = Address(
        setting="DREAMFORGE_DATABASE_URL",
        server="PostgreSQL",
        url=url,
        schemes=("postgresql", "postgres", "postgresql+psycopg"),
        example="postgresql://user:password@host:5432/name",
    )
    try:
        reason = objection(inspect(url), known_schemas())
    except DatabaseUnavailable as error:
        raise address.trouble(error.message) from error
    if reason:
        raise address.trouble(reason)


def _ask_redis(url: str) -> None:
    address = Address(
        setting="DREAMFORGE_REDIS_URL",
        server="Redis",
        url=url,
        schemes=("redis", "rediss", "unix"),
        example="redis://:password@host:6379/0",
    )
    try:
        rehearse(url, timeout=_SECONDS)
    except QueueUnavailable as error:
        raise address.trouble(_redis_words(error)) from error


def _redis_words(error: QueueUnavailable) -> str:
    cause = error.__cause__
    words = str(cause) if isinstance(cause, RedisError) else error.message
    # Redis speaks of its protocol there.
    return "it asks for a password" if "HELLO" in words or words.startswith("Authentication required") else words


def _ask_object_store(endpoint: str, settings: BlobSettings) -> None:
    address = Address(
        setting="DREAMFORGE_S3_ENDPOINT",
        server="The object store",
        url=endpoint,
        schemes=_HTTP,
        example="https://host:9000",
    )
    try:
        Blobs(settings, read_timeout=_SECONDS).rehearse()
    except StorageUnavailable as error:
        raise address.trouble(_store_words(error, settings)) from error
    except ValueError as error:
        # The client's own rules for names of buckets and regions.
        raise StackError(f"DREAMFORGE_S3_BUCKET or DREAMFORGE_S3_REGION: {error}.") from error


def _store_words(error: StorageUnavailable, settings: BlobSettings) -> str:
    if error.details.get("code") in {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
        return (
            f"it answers {error.details['code']}: DREAMFORGE_S3_ACCESS_KEY and _S3_SECRET_KEY must be right, "
            f"and let us read and write in the bucket {settings.bucket!r}"
        )
    if "code" in error.details or error.__cause__ is None:
        return error.message.replace("The object store", "it", 1)
    # urllib3 tells the pool first.
    words = str(error.__cause__).rpartition("): ")[2].removeprefix("Failed to establish a new connection: ")
    return words.partition(" (read timeout")[0]


def _ask_ray(url: str, *, token: str | None) -> None:
    address = Address(
        setting="RAY_ADDRESS", server="Ray's dashboard", url=url, schemes=_HTTP, example="http://host:8265"
    )
    address.require_bare()
    headers = authorization(token) if token else {}
    try:
        answer = httpx2.get(f"{url.rstrip('/')}/api/version", headers=headers, timeout=_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise address.trouble(str(error)) from error
    if answer.status_code in {401, 403}:
        raise address.trouble(
            "it refuses the token of RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            if token
            else "it asks for a token: set RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
        )
    if answer.status_code != 200 or not _is_ray(answer):
        raise address.trouble(f"what answers there, with status {answer.status_code}, is no Ray dashboard")


def _is_ray(answer: httpx2.Response) -> bool:
    try:
        return "ray_version" in answer.json()
    except (ValueError, TypeError):
        return False
