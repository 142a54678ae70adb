"""Which tests go to the same process where several share the work (`-n 2`): a plugin of pytest."""

from pathlib import PurePosixPath
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_SERVICE = "service"
# Kills for want of memory are counted by the machine: whoever counts them must not see another's.
_BESIDE_IT = frozenset({"test_host_memory.py", "test_node_memory.py", "test_rogue_runners.py"})


class _ByFile(LoadScopeScheduling):
    """The tests of a file stay together, and so do all that start the whole service: that waits for others most of the
    time, and the rest fits in between.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        return _SERVICE if "acceptance" in file.parts or file.name in _BESIDE_IT else str(file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    """In place of xdist's own."""
    return _ByFile(config, log)
