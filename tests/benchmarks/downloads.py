"""How fast models come: from a hub, against curl; and from the object store to a second node, against a plain copy.

`python -m tests.benchmarks.downloads [--mib 1024] [--rounds 3] [--json FILE]`

Over loopback, from servers in processes of their own. The first table: one file. curl alone keeps no promise; beside
it stands curl with what a download does besides, one after the other: the file is on the disk (`sync`), and OpenSSL has
computed its hash, as it does for Python. The second table: the parts of SDXL, scaled down, from the embedded S3 server
by presigned URLs, three files at once. Each figure is the median of the rounds, which take turns. Prints tables and
writes them as JSON.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from rich.table import Table

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.models.download.digest import Digest
from dreamforge.models.download.downloader import Downloader
from dreamforge.models.download.limits import MIB
from dreamforge.models.download.transport import Transport
from dreamforge.models.remote import Location, RemoteFile
from tests.benchmarks import report

_TARGET = 0.8
_CONNECTIONS = 4
_FILES_AT_ONCE = 3
_PARTS = {"unet": 0.741, "text_encoder_2": 0.2, "text_encoder": 0.035, "vae": 0.0237, "config": 0.0003}
"""SDXL in 16 bits, 6.9 GB: the share of each file."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file, and of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("build/downloads.json"), help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="df-downloads-") as name:
        folder = Path(name)
        one = _one_file(folder, arguments)
        model = _second_node(folder, arguments)
    _print(f"One file of {arguments.mib} MiB from a hub", one)
    _print(f"A model of {arguments.mib} MiB on a second node", model)
    report.write(arguments.json, arguments, {"one_file": one, "second_node": model})


def _one_file(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    source = _noise(folder / "served" / "model.safetensors", arguments.mib * MIB)
    sha256 = _sha256(source)
    target = folder / "target"

    def ours(connections: int, expected: str | None = sha256) -> None:
        file = RemoteFile(source.name, url, size=source.stat().st_size, sha256=expected)
        Downloader(transport=Transport(), connections=connections).fetch(file, lambda: Location(url), target)

    def ours_unhashed() -> None:
        with patch.object(Digest, "_add", _counted):
            ours(1, None)

    def curl() -> None:
        _run("curl", "--silent", "--fail", "--output", str(target), url)

    def curl_and_all() -> None:
        curl()
        _run("sync", str(target))
        _run("openssl", "dgst", "-sha256", str(target))

    with _served(source.parent) as root:
        url = f"{root}/{source.name}"
        times = _alternated(
            {
                "curl": curl,
                "curl, then sync and hash": curl_and_all,
                "Dream Forge, 1 connection": lambda: ours(1),
                f"Dream Forge, {_CONNECTIONS} connections": lambda: ours(_CONNECTIONS),
                "the same with 1, without hashing": ours_unhashed,
            },
            arguments.rounds,
            target,
        )
    source.unlink()
    return _rows(times, arguments.mib * MIB, judged="Dream Forge", against="curl")


def _second_node(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    data = folder / "s3"
    store = ObjectStore(data=data, port=free_port(), log=folder / "s3.log", secret_key_file=folder / "s3_secret_key")
    parts = {
        name: _noise(data / store.settings().bucket / "models" / name, int(share * arguments.mib * MIB))
        for name, share in _PARTS.items()
    }
    files = [RemoteFile(name, name, size=path.stat().st_size, sha256=_sha256(path)) for name, path in parts.items()]
    target = folder / "node"
    store.start()
    try:
        store.wait_ready()
        blobs = store.blobs()

        def fetch(file: RemoteFile) -> None:
            url = blobs.presign(f"models/{file.path}", ttl=3600, content_type="application/octet-stream", filename="-")
            downloader.fetch(file, lambda: Location(url), target / file.path)

        def ours() -> None:
            target.mkdir()
            with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
                list(threads.map(fetch, files))

        def copy() -> None:
            _run("cp", "-r", str(data / store.settings().bucket / "models"), str(target))

        def copy_and_all() -> None:
            copy()
            _run("sync", *(str(path) for path in target.iterdir()))
            _run("openssl", "dgst", "-sha256", *(str(path) for path in target.iterdir()))

        downloader = Downloader(transport=Transport(), connections=_CONNECTIONS)
        times = _alternated(
            {"cp": copy, "cp, then sync and hash": copy_and_all, "Dream Forge, from the object store": ours},
            arguments.rounds,
            target,
        )
    finally:
        store.stop()
    return _rows(times, sum(file.size or 0 for file in files), judged="", against="cp, then sync and hash")


def _alternated(ways: Mapping[str, Callable[[], None]], rounds: int, target: Path) -> dict[str, float]:
    """Seconds that each way takes."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    # The first round reads the source for the first time, and is not measured.
    for number in range(rounds + 1):
        for name, way in ways.items():
            # What the way before has left to the disk is its own affair.
            os.sync()
            began = time.monotonic()
            way()
            if number:
                times[name].append(time.monotonic() - began)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    return {name: statistics.median(found) for name, found in times.items()}


def _rows(times: Mapping[str, float], size: int, *, judged: str, against: str) -> list[dict[str, object]]:
    return [
        {
            "way": name,
            "seconds": round(seconds, 2),
            "mb_per_second": round(size / seconds / 1e6),
            "ratio": round(times[against] / seconds, 2),
            "against": against,
            "target": _TARGET if judged and name.startswith(judged) else None,
        }
        for name, seconds in times.items()
    ]


def _print(title: str, rows: list[dict[str, object]]) -> None:
    table = Table("way", "seconds", "MB/s", f"against\n{rows[0]['against']}", "target", "reached", title=title)
    for row in rows:
        target, ratio = row["target"], row["ratio"]
        told = report.told(isinstance(ratio, float) and ratio >= _TARGET) if target else ""
        figures = (str(row[name]) for name in ("way", "seconds", "mb_per_second", "ratio"))
        table.add_row(*figures, f"≥ {target}" if target else "", told)
    report.show(table)


@contextmanager
def _served(folder: Path) -> Generator[str]:
    command = [sys.executable, "-m", "tests.hubs.file_server", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def _noise(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for begin in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - begin)))
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _counted(digest: Digest, data: memoryview, size: int) -> None:
    """In place of the hash: all but its arithmetic is done."""
    del size
    digest._place += len(data)  # pyright: ignore[reportPrivateUsage] - as above


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
