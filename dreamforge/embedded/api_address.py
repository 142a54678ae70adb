"""Where the API of the stack is: here, or on the head of the Ray cluster that RAY_ADDRESS names."""

import socket
from urllib.parse import urlsplit

from dreamforge.embedded.trouble import StackError
from dreamforge.settings import Settings


def api_address(settings: Settings) -> str:
    """`http://host:port`. Raises ``StackError`` when it is on another machine and no setting says how to reach it."""
    if not settings.ray_address:
        # DREAMFORGE_URL is for clients, and may name another service.
        return settings.model_copy(update={"url": None}).service_url
    head = urlsplit(settings.ray_address).hostname
    if settings.url is None and head and not _is_here(head):
        raise StackError(
            f"RAY_ADDRESS: the API will be on {head}, not on this machine. Set DREAMFORGE_HOST=0.0.0.0 for it to "
            f"listen there, and DREAMFORGE_URL=http://{head}:{settings.port} for this machine to find it."
        )
    return settings.service_url


def _is_here(host: str) -> bool:
    try:
        family, kind, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # Only an address of this machine can be bound.
            probe.bind(address)
    except OSError:
        return False
    return True
