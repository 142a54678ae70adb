"""Names of files that strangers gave: what may become a path on this machine's disk."""

import re

from dreamforge.errors import DownloadCorrupt

KEPT = (".safetensors", ".json", ".txt")
"""How the names of files end that are ever kept. A tokenizer is of `.json` and `.txt` too."""

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
"""How those end whose reading would run what is in them."""

_LONGEST_NAME = 200
_LONGEST_PATH = 400
_LONGEST_MODEL_NAME = 100
_DEEPEST = 4
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file; a disk may be shared with such a machine.
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_WINDOWS_CHARACTERS = frozenset('<>:"|?*')


def safe_path(text: str) -> str:
    """The path as it stands, relative and with ``/`` between, when it is safe below any folder.

    Raises ``DownloadCorrupt`` for every other, and for a file of a kind that is never kept.
    """
    if fault := fault_of(text):
        shown = text.encode("ascii", errors="backslashreplace").decode()[:80]
        raise DownloadCorrupt(f"The file that the source calls {shown!r} {fault}.", details={"reason": "name"})
    return text


def fault_of(text: str) -> str | None:
    """What is wrong with a path, as the end of a sentence; None when it is safe."""
    if fault := _fault_of_whole(text):
        return fault
    parts = text.split("/")
    if len(parts) > _DEEPEST:
        return f"lies more than {_DEEPEST - 1} folders deep"
    if fault := next((fault for part in parts if (fault := _fault_of_part(part))), None):
        return fault
    if text.lower().endswith(PICKLES):
        return "is a pickle, which can run anything when it is read: only safetensors are taken"
    if not text.endswith(KEPT):
        return "is of a kind that is not kept: only safetensors, JSON and text are"
    return None


def model_name(text: str) -> str:
    """What a model is called that somebody else calls ``text``: what may stand in a name stays of it.

    >>> model_name("My XL (v2)")
    'My-XL-v2'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:_LONGEST_MODEL_NAME].rstrip("._-") or "model"


def _fault_of_whole(text: str) -> str | None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        return "is not named in UTF-8"
    if not text or length > _LONGEST_PATH:
        return f"has a name of no length, or of more than {_LONGEST_PATH} bytes"
    if not text.isprintable():
        return "has characters in its name that cannot be printed"
    if "\\" in text:
        return "has a backslash in its name"
    if text.startswith("/"):
        return "has an absolute path"
    return None


def _fault_of_part(part: str) -> str | None:
    if part in {"", ".", ".."}:
        return "has a path that leads elsewhere"
    if part.startswith("."):
        return "is hidden"
    if len(part.encode()) > _LONGEST_NAME:
        return f"has a name of more than {_LONGEST_NAME} bytes"
    if part.endswith((".", " ")) or part.startswith(" ") or _WINDOWS_CHARACTERS & set(part):
        return "has a name that is not the same on every system"
    if _WINDOWS_DEVICE.fullmatch(part):
        return "has the name of a device"
    return None
