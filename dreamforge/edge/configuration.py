"""Ray Serve's HAProxy configuration, made fit for clients.

Serve writes the configuration from a template (``ray/serve/_private/haproxy_templates.py``) that has no place for rules
of our own. What is changed:

- every error is answered in the API's envelope: bad request lines, huge headers, slow clients, dead replicas, and the
  plain text of Serve itself and of its HTTP server. For what cannot be parsed a door in TCP mode stands before the
  frontend, see ``refusal.lua``;
- a method of nobody's is answered by the API, and an `Upgrade` is not passed on: nothing is spoken here but HTTP;
- headers by which a client could change how Serve runs its request are dropped;
- a client that takes nothing of its answer is hung up on after two minutes instead of an hour;
- a request id that is not sane is replaced, so that nothing unchecked comes back in an answer;
- `/-/routes`, and all of `/-/` but the health check, is nobody's business;
- the metrics and statistics pages listen on loopback, and the admin socket is its owner's.

See HAProxy's configuration manual, sections 4.2 (`http-error`) and 4.3 (`return`).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

REQUEST_SECONDS = 15
"""Seconds a client may take to send its request's head, and the first 16 KiB of its body."""
CLIENT_SECONDS = 120
"""Seconds for which a connection may be without a byte either way, and a client take nothing of what is there for it.
Live streams have signs of life more often, and no answer is held for longer than a minute."""
_REFUSAL = Path(__file__).with_name("refusal.lua")
_OTHER_DESCRIPTORS = 200
"""For listeners, health checks and the like."""
_LOOPBACK = "127.0.0.1"
_SECTION = re.compile(r"^(global|defaults|frontend|backend|listen)\b")


class UnknownConfiguration(Exception):
    """The template is not the one that these changes were made for: Ray is of another version than it should be."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"Ray Serve's HAProxy configuration has {missing}. Install the version of Ray that constraints.txt names."
        )


@dataclass
class _Section:
    header: str
    lines: list[str] = field(default_factory=list[str])

    def replace(self, pattern: str, replacement: str) -> None:
        """Replace in the lines that match. Raises when there is none."""
        self.find(pattern)
        self.lines = [re.sub(pattern, lambda _: replacement, line) for line in self.lines]

    def find(self, pattern: str) -> re.Match[str]:
        """The first match in a line. Raises when there is none."""
        for line in self.lines:
            if match := re.search(pattern, line):
                return match
        raise UnknownConfiguration(f"no line like {pattern!r} in section {self.header!r}")

    def drop(self, pattern: str) -> None:
        """Leave out the lines that match."""
        self.lines = [line for line in self.lines if not re.search(pattern, line)]

    def insert_after(self, pattern: str, added: list[str]) -> None:
        """Put lines behind the first that matches. Raises when there is none."""
        index = self.lines.index(self.find(pattern).string)
        self.lines[index + 1 : index + 1] = [f"    {new}" for new in added]


def edit(configuration: str, *, descriptors: int) -> str:
    """The configuration with our changes, for a process that may open so many files.

    Raises ``UnknownConfiguration``.
    """
    preamble, sections = _split(configuration)
    sections += _door(_named(sections, "global"), _named(sections, "frontend http_frontend"), descriptors)
    _answer_in_the_envelope(_named(sections, "defaults"))
    _named(sections, "defaults").replace(r"timeout client .*", f"timeout client {CLIENT_SECONDS}s")
    _named(sections, "frontend prometheus").replace(r"bind :", f"bind {_LOOPBACK}:")
    _named(sections, "listen stats").replace(r"bind \*:", f"bind {_LOOPBACK}:")
    _guard(_named(sections, "frontend http_frontend"))
    _named(sections, "backend default_backend").replace(
        r"http-request return .*", _return(503, _STARTING, request_id="var(txn.request_id)")
    )
    text = "\n".join("\n".join([section.header, *section.lines]) for section in sections)
    return "\n".join([*preamble, text]) + "\n"


def _split(configuration: str) -> tuple[list[str], list[_Section]]:
    preamble: list[str] = []
    sections: list[_Section] = []
    for line in configuration.splitlines():
        if _SECTION.match(line):
            sections.append(_Section(header=line))
        elif sections:
            sections[-1].lines.append(line)
        else:
            preamble.append(line)
    return preamble, sections


def _named(sections: list[_Section], header: str) -> _Section:
    for section in sections:
        if section.header.strip() == header:
            return section
    raise UnknownConfiguration(f"no section {header!r}")


def _door(settings: _Section, frontend: _Section, descriptors: int) -> list[_Section]:
    """Take the frontend's address for a door before it, and have the frontend listen to that door alone."""
    settings.replace(r"mode 666", "mode 600")
    # A client has two connections here, one to the door and one behind it. HAProxy refuses to start when it may not
    # have two descriptors for each, and a pipe for every fourth.
    most = min(2 * int(settings.find(r"maxconn (\d+)")[1]), (descriptors - _OTHER_DESCRIPTORS) * 2 // 5)
    settings.replace(r"maxconn .*", f"maxconn {most}")
    settings.lines.append(f'    lua-load-per-thread "{_REFUSAL}" {REQUEST_SECONDS}')
    folder = settings.find(r"stats socket (\S+)/")[1]
    socket = f"unix@{folder}/door.sock"
    address = frontend.find(r"^\s*bind .*")[0].strip()
    frontend.replace(r"^\s*bind .*", f"    bind {socket} mode 600 accept-proxy")
    return [
        _Section("frontend door", [f"    {line}" for line in (address, *_DOOR_RULES)]),
        _Section(
            "backend behind_the_door",
            ["    mode tcp", "    timeout server 3600s", f"    server door {socket} send-proxy-v2"],
        ),
    ]


_DOOR_RULES = (
    "mode tcp",
    "no log",
    f"tcp-request inspect-delay {REQUEST_SECONDS}s",
    "tcp-request connection set-var(sess.began) date(0,ms)",
    "tcp-request content accept if HTTP",
    # From here on the head is no HTTP, or has not come in time.
    "tcp-request content set-var(txn.received) req.len",
    "tcp-request content use-service lua.refusal if !HTTP",
    "filter lua.envelope",
    "default_backend behind_the_door",
)


def _answer_in_the_envelope(defaults: _Section) -> None:
    defaults.drop(r"^\s*errorfile ")
    defaults.replace(r"retry-on .*", "retry-on conn-failure empty-response")
    # Before a request could be read it has no id: the one that HAProxy makes is used.
    early = [_http_error(status, *_EARLY[status], request_id="unique-id") for status in _EARLY]
    late = [_http_error(status, *_AWAY, request_id="var(txn.request_id)") for status in (500, 502, 503, 504)]
    defaults.lines += [f"    {line}" for line in (*early, *late)]


def _guard(frontend: _Section) -> None:
    plain_text = "!{ res.hdr(content-type) -m beg application/ }"
    frontend.insert_after(
        r"^\s*bind ",
        [
            f"timeout http-request {REQUEST_SECONDS}s",
            "unique-id-format %[uuid]",
            "http-request set-var(txn.request_id) req.hdr(x-request-id) "
            "if { req.hdr(x-request-id) -m reg ^[A-Za-z0-9._:-]{1,128}$ } { req.hdr_cnt(x-request-id) 1 }",
            "http-request set-var(txn.request_id) unique-id if !{ var(txn.request_id) -m found }",
            "http-request set-header x-request-id %[var(txn.request_id)]",
            # A replica that died in the middle: what only reads is asked of another one, what writes is not sent twice.
            "http-request disable-l7-retry if !METH_GET",
            "http-request del-header x-request-timeout-seconds",
            "http-request del-header x-request-disconnect-disabled",
            # Nothing here is spoken but HTTP: a request that would also like another protocol is answered as any other.
            "http-request del-header upgrade",
            # A replica's parser knows some methods and stops at all others. By one that it knows and nothing takes,
            # the API says what there is at the address, and what that takes.
            f"http-request set-method TRACE if !{{ method {_METHODS} }}",
            f"http-request {_reply(400, *_EARLY[400], request_id='var(txn.request_id)')} if !{{ path_beg / }}",
            f"http-request {_reply(404, *_NOWHERE, request_id='var(txn.request_id)')} "
            "if { path_beg -i /-/ } !{ path -i /-/healthz }",
            f"http-request wait-for-body time {REQUEST_SECONDS}s if METH_POST",
            *(
                f"http-response {_reply(status, *_REPLICA_TEXT[status], request_id='var(txn.request_id)')} "
                f"if {{ status {status} }} {plain_text}"
                for status in _REPLICA_TEXT
            ),
            "http-response del-header server",
            # What HAProxy answers by itself for Serve, as for `/-/healthz`, has no id.
            "http-after-response set-header x-request-id %[var(txn.request_id)] "
            "if { var(txn.request_id) -m found } !{ res.hdr(x-request-id) -m found }",
        ],
    )


_AWAY = ("service_unavailable", "The service does not answer. Try again soon.")
_STARTING = ("service_unavailable", "The service is starting or stopping. Try again soon.")
_NOWHERE = ("not_found", "There is nothing at this address.")
_SLOW = ("request_timeout", "The request did not arrive in time.")
_EARLY = {
    400: ("invalid_request", "The request is not valid HTTP, or its head is too large."),
    408: _SLOW,
    413: ("body_too_large", "The request body is too large."),
    501: ("invalid_request", "The request uses a part of HTTP that is not supported."),
}
_REPLICA_TEXT = {
    # What HAProxy lets pass and a replica's parser does not: control characters in a header, say.
    400: _EARLY[400],
    404: _NOWHERE,
    408: _SLOW,
    500: ("internal", "Something went wrong inside the service."),
    503: _AWAY,
}
"""By the status of an answer in plain text, which is of Serve or of its HTTP server, not of the API."""
_METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS"
_RETRY_AFTER = 5


def _http_error(status: int, code: str, message: str, *, request_id: str) -> str:
    return f"http-error {_content(status, code, message, request_id=request_id)}"


def _reply(status: int, code: str, message: str, *, request_id: str) -> str:
    return f"return {_content(status, code, message, request_id=request_id)}"


def _return(status: int, texts: tuple[str, str], *, request_id: str) -> str:
    return f"http-request {_reply(status, *texts, request_id=request_id)}"


def _content(status: int, code: str, message: str, *, request_id: str) -> str:
    body = (
        f'{{"error":{{"code":"{code}","message":"{message}","details":{{}},"job_id":null,'
        f'"request_id":"%[{request_id}]"}}}}'
    )
    retry = f" hdr retry-after {_RETRY_AFTER}" if status in {500, 502, 503, 504} and code != "internal" else ""
    return (
        f"status {status} content-type application/json lf-string '{body}' "
        f"hdr x-request-id %[{request_id}] hdr cache-control no-store{retry}"
    )
