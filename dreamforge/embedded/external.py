"""Servers that are not ours: asked before anything is started whether they let us in."""

import httpx2
import psycopg
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.embedded.trouble import StackError
from dreamforge.errors import StorageUnavailable
from dreamforge.settings import Settings

_SECONDS = 5


def require_external(settings: Settings, blobs: BlobSettings) -> None:
    """Ask each server that a setting names. Raises ``StackError`` with the setting and the server's own words."""
    if settings.database_url:
        _ask_postgres(settings.database_url.get_secret_value())
    if settings.redis_url:
        _ask_redis(settings.redis_url.get_secret_value())
    if settings.s3_endpoint:
        _ask_object_store(blobs)
    if settings.ray_address:
        _ask_ray(settings.ray_address)


def _ask_postgres(url: str) -> None:
    try:
        psycopg.connect(url, connect_timeout=_SECONDS).close()
    except psycopg.Error as error:
        raise _refused("DREAMFORGE_DATABASE_URL", error) from error


def _ask_redis(url: str) -> None:
    try:
        with Redis.from_url(
            url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
    except (RedisError, ValueError) as error:
        raise _refused("DREAMFORGE_REDIS_URL", error) from error


def _ask_object_store(settings: BlobSettings) -> None:
    try:
        Blobs(settings, read_timeout=_SECONDS).ensure_bucket()
    except (StorageUnavailable, ValueError) as error:
        raise _refused("DREAMFORGE_S3_ENDPOINT", error.__cause__ or error) from error


def _ask_ray(address: str) -> None:
    try:
        answer = httpx2.get(f"{address}/api/version", timeout=_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _refused("RAY_ADDRESS", error) from error
    # 401 and 403 come from a cluster with a token: it is there, and the deployment will show the token.
    if answer.status_code not in {200, 401, 403}:
        raise StackError(f"RAY_ADDRESS: {address} answers {answer.status_code}; it must be a Ray dashboard.")


def _refused(setting: str, error: BaseException) -> StackError:
    return StackError(f"{setting}: the server cannot be used. {str(error).strip().splitlines()[0][:300]}")
