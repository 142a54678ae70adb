"""From the settings to the parts: which servers are embedded, where they keep things, how they are reached."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from dreamforge.blobs import BlobSettings
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.part import Part
from dreamforge.embedded.postgres import Postgres
from dreamforge.embedded.ray_head import RayHead, RayPorts
from dreamforge.embedded.state import holder
from dreamforge.embedded.trouble import StackError
from dreamforge.embedded.valkey import Valkey
from dreamforge.settings import Settings


@dataclass(frozen=True)
class Layout:
    """The parts of a stack; None where a setting points to somebody else's."""

    data_dir: Path
    postgres: Postgres | None
    valkey: Valkey | None
    object_store: ObjectStore | None
    ray: RayHead | None
    database_url: str
    blobs: BlobSettings
    dashboard_url: str
    ray_token: str | None

    def parts(self) -> dict[str, Part]:
        """The embedded ones by name, in the order in which the others need them."""
        named: dict[str, Part | None] = {
            "postgres": self.postgres,
            "valkey": self.valkey,
            "s3": self.object_store,
            "ray": self.ray,
        }
        return {name: part for name, part in named.items() if part is not None}


def prepare_data_dir(settings: Settings) -> Path:
    """The data folder, made when there is none, with the folder for logs in it. Raises ``StackError``."""
    data_dir = settings.data_dir.absolute()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        probe = data_dir / "logs" / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise StackError(
            f"The data folder {data_dir} cannot be used ({error.strerror}). Set DREAMFORGE_DATA_DIR to another one."
        ) from error
    return data_dir


def lay_out(settings: Settings, *, gpus: int) -> Layout:
    """The parts that ``settings`` ask for. Nothing is started, secrets are made."""
    data_dir = prepare_data_dir(settings)
    postgres = None if settings.database_url else _postgres(settings, data_dir)
    valkey = None if settings.redis_url else _valkey(settings, data_dir)
    store = None if settings.s3_endpoint else _object_store(settings, data_dir)
    database_url = postgres.url() if postgres else _secret(settings.database_url)
    redis_url = valkey.url() if valkey else _secret(settings.redis_url)
    blobs = blob_settings(settings, store)
    ray = None
    if not settings.ray_address:
        variables = _variables(settings, data_dir, database_url=database_url, redis_url=redis_url, blobs=blobs)
        ray = _ray(settings, data_dir, gpus=gpus, variables=variables)
    return Layout(
        data_dir=data_dir,
        postgres=postgres,
        valkey=valkey,
        object_store=store,
        ray=ray,
        database_url=database_url,
        blobs=blobs,
        dashboard_url=ray.dashboard_url if ray else str(settings.ray_address).rstrip("/"),
        ray_token=ray.token() if ray else _given_token(settings),
    )


def database_url_of(settings: Settings) -> str:
    """The service's database: the one that is set, else that of the stack that runs here. Raises ``StackError``."""
    if settings.database_url:
        return _secret(settings.database_url)
    data_dir = settings.data_dir.absolute()
    if holder(data_dir) is None:
        words = f"Nothing is running over {data_dir}, and DREAMFORGE_DATABASE_URL names no database."
        raise StackError(f"{words} Start it: dreamforge up")
    return _postgres(settings, data_dir).url()


def blob_settings_of(settings: Settings) -> BlobSettings:
    """How the service's images are reached: in the store that is set, else in that of the stack that runs here.

    Raises ``StackError``.
    """
    if settings.s3_endpoint:
        return blob_settings(settings)
    data_dir = settings.data_dir.absolute()
    if holder(data_dir) is None:
        raise StackError(f"Nothing is running over {data_dir}, and DREAMFORGE_S3_ENDPOINT names no object store.")
    return blob_settings(settings, _object_store(settings, data_dir))


def _postgres(settings: Settings, data_dir: Path) -> Postgres:
    return Postgres(
        data=data_dir / "postgres",
        port=settings.postgres_port,
        log=data_dir / "logs" / "postgres.log",
        password_file=data_dir / "secrets" / "postgres_password",
    )


def _valkey(settings: Settings, data_dir: Path) -> Valkey:
    return Valkey(
        data=data_dir / "valkey",
        port=settings.redis_port,
        log=data_dir / "logs" / "valkey.log",
        password_file=data_dir / "secrets" / "valkey_password",
    )


def _object_store(settings: Settings, data_dir: Path) -> ObjectStore:
    return ObjectStore(
        data=data_dir / "s3",
        port=settings.s3_port,
        log=data_dir / "logs" / "s3.log",
        secret_key_file=data_dir / "secrets" / "s3_secret_key",
    )


def _ray(settings: Settings, data_dir: Path, *, gpus: int, variables: Mapping[str, str]) -> RayHead:
    return RayHead(
        data_dir=data_dir,
        ports=RayPorts(gcs=settings.ray_port, dashboard=settings.dashboard_port),
        gpus=gpus,
        log=data_dir / "logs" / "ray.log",
        token_file=data_dir / "secrets" / "ray_token",
        variables=variables,
    )


def blob_settings(settings: Settings, store: ObjectStore | None = None) -> BlobSettings:
    """How images are reached: in ``store``, else in the object store that ``settings`` name."""
    endpoint = store.endpoint if store else str(settings.s3_endpoint)
    return BlobSettings(
        endpoint=endpoint,
        public_endpoint=settings.s3_public_endpoint or endpoint,
        access_key=store.access_key if store else str(settings.s3_access_key),
        secret_key=store.secret_key if store else _secret(settings.s3_secret_key),
        bucket=settings.s3_bucket,
        region=settings.s3_region,
    )


def _variables(
    settings: Settings, data_dir: Path, *, database_url: str, redis_url: str, blobs: BlobSettings
) -> Mapping[str, str]:
    """What replicas and workers find in their environment; everything else they inherit as it was given to us."""
    return {
        "DREAMFORGE_DATA_DIR": str(data_dir),
        "DREAMFORGE_MODELS_DIR": str(settings.models_root),
        "DREAMFORGE_DATABASE_URL": database_url,
        "DREAMFORGE_REDIS_URL": redis_url,
        "DREAMFORGE_S3_ENDPOINT": blobs.endpoint,
        "DREAMFORGE_S3_PUBLIC_ENDPOINT": blobs.public_endpoint,
        "DREAMFORGE_S3_ACCESS_KEY": blobs.access_key,
        "DREAMFORGE_S3_SECRET_KEY": blobs.secret_key,
    }


def _given_token(settings: Settings) -> str | None:
    if settings.ray_auth_token_path:
        try:
            return settings.ray_auth_token_path.read_text().strip()
        except (OSError, ValueError) as error:
            raise StackError(f"RAY_AUTH_TOKEN_PATH: {settings.ray_auth_token_path} cannot be read.") from error
    return _secret(settings.ray_auth_token) or None


def _secret(value: SecretStr | None) -> str:
    return value.get_secret_value() if value else ""
