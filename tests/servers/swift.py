"""OpenStack Swift with its S3 door: one replica on one disk, four daemons over one folder.

It shares no code with the S3 server that comes with Dream Forge, and it checks signatures itself.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from dreamforge.blobs import BlobSettings
from dreamforge.embedded.ports import free_port
from dreamforge.embedded.process import Program, ServerProcess
from tests.servers import packages

ACCESS_KEY = "somebody:painter"
SECRET_KEY = "an+open/secret="
_PYTHON = "/usr/bin/python3"
_STORAGE = ("account", "container", "object")
_START_SECONDS = 60.0
# Swift looks for its settings in one folder only. They must be moved before anything else of it is imported.
_SERVE = """
import sys
from swift.common import utils
utils.SWIFT_CONF_FILE = sys.argv[1]
from swift.common.wsgi import run_wsgi
sys.exit(run_wsgi(sys.argv[2], sys.argv[3]))
"""
_RINGS = """
import json, sys
from swift.common.ring import RingBuilder
for ring, port in json.loads(sys.argv[2]).items():
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{ring}.ring.gz")
"""
_PROXY_FILTERS = f"""
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
# Asked for by tempauth; there is no memcached, and nothing depends on one.
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_{ACCESS_KEY.replace(":", "_")} = {SECRET_KEY} .admin
[filter:slo]
use = egg:swift#slo
"""


def require(folder: Path) -> None:
    """Skip the test where not all four daemons are installed, or ``folder`` cannot hold their data."""
    installed = all(shutil.which(f"swift-{kind}-server") for kind in ("proxy", *_STORAGE))
    packages.require(installed, "swift-proxy swift-account swift-container swift-object")
    try:
        os.setxattr(folder, "user.probe", b"")
    except OSError:
        pytest.skip(f"Swift keeps its notes in extended attributes, and {folder} has none")


class Swift:
    """A Swift cluster of one machine."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder
        self._ports = {kind: free_port() for kind in ("proxy", *_STORAGE)}
        self._servers: list[ServerProcess] = []

    @property
    def endpoint(self) -> str:
        """`http://…`, without a bucket."""
        return f"http://127.0.0.1:{self._ports['proxy']}"

    def settings(self) -> BlobSettings:
        """How a client reaches a bucket of it."""
        return BlobSettings(
            endpoint=self.endpoint,
            public_endpoint=self.endpoint,
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            bucket="dreamforge",
            region="us-east-1",
        )

    def start(self) -> None:
        """Start the daemons and return once the S3 door is open."""
        (self._folder / "disks" / "disk").mkdir(parents=True, exist_ok=True)
        (self._folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = salt\n")
        rings = {kind: self._ports[kind] for kind in _STORAGE}
        subprocess.run([_PYTHON, "-c", _RINGS, str(self._folder), json.dumps(rings)], check=True, capture_output=True)
        for kind in (*_STORAGE, "proxy"):
            self._start(kind)
        for kind, server in zip((*_STORAGE, "proxy"), self._servers, strict=True):
            server.wait_until(lambda kind=kind: self._is_healthy(kind), timeout=_START_SECONDS)

    def stop(self) -> None:
        """Shut them down; what was stored is there after the next start."""
        while self._servers:
            self._servers.pop().stop(grace=3)

    def _start(self, kind: str) -> None:
        configuration = self._folder / f"{kind}.conf"
        configuration.write_text(self._configuration(kind))
        command = [_PYTHON, "-c", _SERVE, str(self._folder / "swift.conf"), str(configuration), f"{kind}-server"]
        self._servers.append(
            ServerProcess(Program(name=f"Swift's {kind} server", command=command, log=self._folder / f"{kind}.log"))
        )

    def _configuration(self, kind: str) -> str:
        user = Path(self._folder).owner()
        common = (
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {self._ports[kind]}\nuser = {user}\nworkers = 0\n"
            f"swift_dir = {self._folder}\ndevices = {self._folder / 'disks'}\nmount_check = false\n"
            "fallocate_reserve = 0\ndb_preallocation = off\n"
        )
        if kind == "proxy":
            pipeline = "catch_errors healthcheck cache s3api tempauth slo proxy-server"
            return f"{common}[pipeline:main]\npipeline = {pipeline}\n{_PROXY_FILTERS}"
        return (
            f"{common}[pipeline:main]\npipeline = healthcheck {kind}-server\n"
            f"[app:{kind}-server]\nuse = egg:swift#{kind}\n[filter:healthcheck]\nuse = egg:swift#healthcheck\n"
        )

    def _is_healthy(self, kind: str) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._ports[kind]}/healthcheck", timeout=2) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False
