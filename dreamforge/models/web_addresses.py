"""Addresses that people paste from their browsers: which reference stands for the same model."""

import re
from urllib.parse import parse_qs, unquote, urlsplit

_HUGGING_FACE = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_CIVITAI = re.compile(r"(www\.)?civitai\.(com|red|green)")
_REPO = re.compile(
    r"/(?P<repo>[\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve|raw)/(?P<revision>[^/]+)(?:/(?P<file>.+))?)?/?", re.ASCII
)
_MODEL = re.compile(r"/(?:api/v1/)?models/(?P<model>[0-9]+)(?:/.*)?")
_DOWNLOAD = re.compile(r"/api/(?:download/models|v1/model-versions)/(?P<version>[0-9]+)/?")
_BARE_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?(:[\w./-]+)?", re.ASCII)


def reference_for(text: str) -> str | None:
    """The reference to write in place of ``text``; None where it is no page of a hub.

    >>> reference_for("https://civitai.com/models/277058/epicrealism-xl?modelVersionId=1920523")
    'civitai:277058@1920523'
    """
    if text.startswith("/"):
        return f"file:{text}"
    if text.startswith(("./", "../", "~")):
        return "file: and the absolute path, as file:/data/model.safetensors"
    if _BARE_REPO.fullmatch(text):
        return f"hf:{text}"
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host = parts.hostname or ""
    except ValueError:
        return None
    if parts.scheme == "hf":
        return "hf:org/repo, without slashes behind the colon"
    if parts.scheme == "huggingface" or text.startswith("huggingface:"):
        return "hf:org/repo"
    if parts.scheme not in {"http", "https"} or parts.fragment.startswith("sha256"):
        return None
    if host in _HUGGING_FACE:
        return _hugging_face(parts.path)
    return _civitai(parts.path, parts.query) if _CIVITAI.fullmatch(host) else None


def _hugging_face(path: str) -> str:
    found = _REPO.fullmatch(unquote(path))
    if found is None:
        return "hf:org/repo"
    revision = "" if found["revision"] in {None, "main"} else f"@{found['revision']}"
    file = f":{found['file']}" if found["file"] else ""
    return f"hf:{found['repo']}{revision}{file}"


def _civitai(path: str, query: str) -> str:
    if found := _DOWNLOAD.fullmatch(path):
        return f"civitai:model@{found['version']}, with the model's number, which is in the address of its page"
    found = _MODEL.fullmatch(path)
    if found is None:
        return "civitai:model@version, with the numbers in the address of its page"
    version = parse_qs(query).get("modelVersionId", [""])[0]
    return f"civitai:{found['model']}{f'@{version}' if version.isdecimal() else ''}"
