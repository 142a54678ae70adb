"""Room on the disk: databases that run out of it stop."""

import shutil
from pathlib import Path

from dreamforge.embedded.trouble import StackError

_LEAST_MIB = 500
_MIB = 1024 * 1024


def require_space(data_dir: Path) -> None:
    """Raise ``StackError`` when less than 500 MiB are free where the data lie."""
    free = shutil.disk_usage(data_dir).free // _MIB
    if free < _LEAST_MIB:
        raise StackError(
            f"Only {free} MiB are free for {data_dir}; {_LEAST_MIB} MiB are needed. "
            "Make room, or set DREAMFORGE_DATA_DIR to another disk."
        )
