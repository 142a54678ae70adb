"""All settings, read from ``DREAMFORGE_*`` environment variables. Nothing else reads the environment.

Entry points (``deployments``, ``cli``, ``embedded``) build one ``Settings`` and hand plain values on.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_HOST = r"(?i:https?)://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?"
_BARE_ADDRESS = re.compile(rf"{_HOST}/?")
_HUB_ADDRESS = re.compile(rf"{_HOST}(?:/[A-Za-z0-9_.~-]+)*/?")


class Settings(BaseSettings):
    """Settings of one process. Immutable; secrets are masked when printed, and no error repeats a value."""

    model_config = SettingsConfigDict(
        env_prefix="DREAMFORGE_", frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    data_dir: Path = Path(".dreamforge")
    """Where `dreamforge up` keeps databases, images, keys and logs."""
    models_dir: Path | None = None
    """Where model files lie; `<data_dir>/models` when unset."""
    model_cache_dir: Path | None = None
    """Where a GPU node keeps the models that it fetched from the object store; `<data_dir>/model-cache` when unset."""
    model_cache_size: ByteSize | None = Field(default=None, ge=1024 * 1024)
    """Bytes that these may take, as `100GiB`: the least recently used make room. Unset: what the disk has."""
    download_slots: int = Field(default=2, ge=0, le=64)
    """Downloads at once that the API was asked for; 0: this service does none."""
    download_connections: int = Field(default=4, ge=1, le=16)
    """Connections for one file."""
    download_stall_seconds: float = Field(default=60.0, gt=0)
    """Seconds without a byte after which a connection is given up and made anew."""
    hf_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")
    """Of huggingface.co, for models that ask for one."""
    hf_endpoint: str = Field(default="https://huggingface.co", validation_alias="HF_ENDPOINT")
    civitai_token: SecretStr | None = None
    """Of civitai.com, for models that ask for one."""
    civitai_endpoint: str = "https://civitai.com"

    host: Literal["127.0.0.1", "0.0.0.0"] = "127.0.0.1"  # noqa: S104 - no other works: HAProxy and replicas meet on loopback
    port: int = Field(default=8700, ge=1, le=65535)
    """Address of the HTTP API."""
    url: str | None = None
    """`http://host:port` of the service that client commands speak to; the address above when unset."""
    postgres_port: int = Field(default=8701, ge=1, le=65535)
    redis_port: int = Field(default=8702, ge=1, le=65535)
    s3_port: int = Field(default=8703, ge=1, le=65535)
    ray_port: int = Field(default=8704, ge=1, le=65535)
    """The embedded Ray head's GCS port."""
    dashboard_port: int = Field(default=8265, ge=1, le=65535)
    gpus: int | None = Field(default=None, ge=0, le=64)
    """GPUs the embedded Ray head offers. Unset: the NVIDIA GPUs found, else one logical GPU that runs on the CPU."""

    self_check: bool = True
    """Whether `dreamforge up` draws one image before it says that it is ready."""

    database_url: SecretStr | None = None
    """`postgresql://user:password@host:port/name`. Set: no embedded PostgreSQL is started."""
    redis_url: SecretStr | None = None
    """`redis://:password@host:port/0`. Set: no embedded Valkey is started."""
    s3_endpoint: str | None = None
    """`http://host:port` of the object store, as the service reaches it. Set: no embedded S3 server is started."""
    s3_public_endpoint: str | None = None
    """The same store as clients reach it; presigned URLs are signed for it. `s3_endpoint` when unset."""
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    s3_bucket: str = "dreamforge"
    s3_region: str = "us-east-1"
    presign_ttl: int = Field(default=3600, ge=1, le=604800)
    """Seconds a presigned URL stays valid (SigV4 allows seven days at most)."""

    ray_address: str | None = Field(default=None, validation_alias="RAY_ADDRESS")
    """`http://host:8265`, the dashboard of a Ray cluster. Set: no embedded Ray head is started."""

    ray_auth_token: SecretStr | None = Field(default=None, validation_alias="RAY_AUTH_TOKEN")
    ray_auth_token_path: Path | None = Field(default=None, validation_alias="RAY_AUTH_TOKEN_PATH")
    """What that cluster's dashboard asks for, or the file that holds it."""

    redis_outage: Literal["accept", "reject"] = "accept"
    """What POST /v1/jobs does while Redis is away: accept (Postgres has the job, and it runs) or answer 503."""
    max_body: int = Field(default=1_048_576, ge=1024)
    """Bytes of a request body."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names, with commas between, that the API answers to beside this machine's own and every address.
    `*.example.org` is every name below it; `*` lets every name in, and with it pages that rebind theirs."""

    idempotency_ttl: int = Field(default=86_400, ge=1, le=31_536_000)
    """Seconds for which an Idempotency-Key stands for the job it made."""

    stream_poll_seconds: float = Field(default=0.1, ge=0.01, le=10)
    """How often an API replica looks for the events of all the jobs that are being followed, while there are any."""
    stream_idle_seconds: float = Field(default=0.25, ge=0.01, le=10)
    """The same where nothing happens."""
    stream_keep_alive_seconds: float = Field(default=15.0, gt=0, le=25)
    """The longest silence of a stream, which a sign of life then ends; clients wait for one for 45 s."""
    stream_stall_seconds: float = Field(default=20.0, gt=0)
    """How long a reader of a stream may take nothing before it is cut off. It may resume."""

    lease_seconds: float = Field(default=30.0, ge=1, le=3600)
    """Seconds after its last sign of life after which whoever runs a step has lost it."""
    lease_renew_seconds: float = Field(default=5.0, gt=0, le=1200)
    """Seconds between signs of life; a third of a lease at most."""
    heartbeat_seconds: float = Field(default=5.0, gt=0)
    outbox_seconds: float = Field(default=1.0, gt=0)
    drain_timeout: float = Field(default=8.0, ge=0)
    """Seconds a stopping dispatcher waits for running steps before it puts them back into the queue."""
    start_timeout: float = Field(default=600.0, gt=0)
    """Seconds a step may wait, once it was handed to Ray, for the cluster to have a GPU at all; and its process, once
    it is there, to begin."""
    step_timeout: float = Field(default=600.0, gt=0)
    """Seconds a step may run, and for each of its images ..."""
    step_item_timeout: float = Field(default=600.0, ge=0)
    """... so many more, when the job names no limit of its own."""
    stall_timeout: float = Field(default=300.0, gt=0)
    """Seconds of a runner's silence after which it is ended. The loading of a model is silent."""
    cancel_grace: float = Field(default=10.0, ge=0)
    """Seconds a cancelled runner has to come to its next step of denoising, before it is ended."""
    retry_failures: int = Field(default=3, ge=1, le=100)
    """Attempts in a row, with no image between, that may fail because something they need is away."""
    retry_crashes: int = Field(default=3, ge=1, le=100)
    """The same for those whose process ends without a report."""
    retry_rescues: int = Field(default=10, ge=1, le=1000)
    """The same for those whose dispatcher or node is lost."""
    retry_pause: float = Field(default=2.0, ge=0, le=120)
    """Seconds before the second attempt; they double with each, up to two minutes."""
    database_grace: float = Field(default=60.0, ge=0)
    """Seconds a supervisor waits for a database that is away before it gives up what it has to write."""
    storage_grace: float = Field(default=120.0, ge=0)
    """Seconds an upload is tried again while the object store is away, before the image is kept on the node's disk."""
    step_memory: ByteSize | None = Field(default=None, ge=64 * 1024 * 1024)
    """Memory of the node that a runner may take, as `24GiB`, where cgroups allow a limit; unset: what there is."""
    gpu_settle_seconds: float = Field(default=10.0, ge=0)
    """How long to wait for GPU memory to come back after the runner has gone."""
    gpu_tolerance_mib: int = Field(default=64, ge=0)

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _names_with_commas_between(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
                raise ValueError(f"{name!r} is no host name, nor * or *.example.org; ports do not belong here")
        return names

    @field_validator("s3_endpoint", "s3_public_endpoint")
    @classmethod
    def _is_bare_address(cls, url: str | None) -> str | None:
        # Clients of a store make their own of a path or a password in there.
        if url is not None and not _is_address(url, _BARE_ADDRESS):
            raise ValueError("it is not like https://host:9000, which is a scheme, a host and a port alone")
        return url

    @field_validator("hf_endpoint", "civitai_endpoint")
    @classmethod
    def _is_address_of_a_hub(cls, url: str) -> str:
        # A mirror may be a folder of its host, and HF_ENDPOINT is other programs' too, which take one.
        if not _is_address(url, _HUB_ADDRESS):
            raise ValueError("it is not like https://host or https://host/folder")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _s3_keys_come_with_an_endpoint(self) -> Self:
        if self.s3_endpoint and not (self.s3_access_key and self.s3_secret_key):
            raise ValueError("DREAMFORGE_S3_ENDPOINT is set: set DREAMFORGE_S3_ACCESS_KEY and _S3_SECRET_KEY too")
        return self

    @model_validator(mode="after")
    def _leases_are_renewed_in_time(self) -> Self:
        if self.lease_renew_seconds > self.lease_seconds / 3:
            raise ValueError("DREAMFORGE_LEASE_RENEW_SECONDS is more than a third of DREAMFORGE_LEASE_SECONDS")
        return self

    @model_validator(mode="after")
    def _the_cache_is_a_folder_of_its_own(self) -> Self:
        if self.model_cache == self.models_root:
            raise ValueError("DREAMFORGE_MODEL_CACHE_DIR is the folder of the installed models: name another one")
        return self

    @property
    def service_url(self) -> str:
        """Where client commands find the service."""
        # What listens everywhere is reached on loopback.
        return (self.url or f"http://127.0.0.1:{self.port}").rstrip("/")

    @property
    def models_root(self) -> Path:
        """Absolute folder of the installed models."""
        return (self.models_dir or self.data_dir / "models").absolute()

    @property
    def model_cache(self) -> Path:
        """Absolute folder of the models that this node fetched."""
        return (self.model_cache_dir or self.data_dir / "model-cache").absolute()


def _is_address(url: str, shape: re.Pattern[str]) -> bool:
    try:
        return bool(shape.fullmatch(url)) and urlsplit(url).port != 0
    except ValueError:
        return False


def load() -> Settings:
    """Read the settings from the environment. Raises pydantic's ``ValidationError`` when a value is wrong."""
    return Settings()


def inherited_environment() -> Mapping[str, str]:
    """The whole environment of this process, for those who start a child and decide what it may see."""
    return dict(os.environ)  # noqa: TID251 - the one place
