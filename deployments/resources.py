"""What every deployed process needs, from the settings in the environment of `ray start`."""

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.settings import Settings


class MissingSetting(RuntimeError):
    """A setting that `dreamforge up` or the operator must provide before `ray start`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not set in the environment of `ray start`")


def database_url(settings: Settings) -> str:
    """The database's URL. Raises ``MissingSetting``."""
    if settings.database_url is None:
        raise MissingSetting("DREAMFORGE_DATABASE_URL")
    return settings.database_url.get_secret_value()


def redis_url(settings: Settings) -> str:
    """The queue's URL. Raises ``MissingSetting``."""
    if settings.redis_url is None:
        raise MissingSetting("DREAMFORGE_REDIS_URL")
    return settings.redis_url.get_secret_value()


def open_blobs(settings: Settings) -> Blobs:
    """The bucket of images. Raises ``MissingSetting``."""
    return Blobs(blob_settings(settings))


def blob_settings(settings: Settings) -> BlobSettings:
    """How that is reached. Raises ``MissingSetting``."""
    if settings.s3_endpoint is None or settings.s3_access_key is None or settings.s3_secret_key is None:
        raise MissingSetting("DREAMFORGE_S3_ENDPOINT")
    return BlobSettings(
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint or settings.s3_endpoint,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        bucket=settings.s3_bucket,
        region=settings.s3_region,
    )
