"""Requests and answers of HTTP/1.1 (RFC 9112), as far as three documents need it: bytes in, values
out.

Every answer ends its connection. Who asks in HTTP/1.0 gets it up to the end of the stream, anybody
else in chunks.
"""

import re
from collections.abc import Generator
from typing import NamedTuple

NOTHING = "default-src 'none'"
"""The policy (Content-Security-Policy) of what is no page."""

MOST_BYTES = 8192
"""Bytes of a request: what others allow, too. A body is not read."""

_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/(\d)\.(\d)")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\0\r]*)")
_HOST = re.compile(r"[\w.~%:\[\]-]*", re.ASCII)
_NEAR = re.compile(r"(?:[^.]*|[0-9.]+|\[.*\]|.*\.localhost)(?::[0-9]*)?", re.IGNORECASE)

_WORDS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """A request that is answered with ``status``, and a sentence that says what was expected."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Request(NamedTuple):
    """``accept`` is what the client can read; ``chunks`` whether it knows them; ``near`` whether it
    calls us by no name of the DNS, which its owner can lead to us."""

    method: str
    path: str
    query: dict[str, str]
    accept: str
    chunks: bool
    near: bool = True


def parse(data: bytes) -> Request | None:
    """Read a request, None where it is not complete. Raises ``Refused``."""
    head, end, _ = data.replace(b"\r\n", b"\n").lstrip(b"\r\n").partition(b"\n\n")
    if len(head if end else data) > MOST_BYTES:
        raise Refused(431, f"expected a request of at most {MOST_BYTES} bytes")
    if not end and (not head or head[:1].isalpha()):  # else it is TLS, or no request either
        return None
    first, *lines = head.decode("latin-1").split("\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise Refused(400, "expected a request line: GET /PATH HTTP/1.1")
    method, target, major, minor = line.groups()
    if major != "1":
        raise Refused(505, "expected HTTP/1.1 or HTTP/1.0")
    fields: dict[str, str] = {}
    for one in lines:
        field = _FIELD.fullmatch(one)
        if field is None:
            raise Refused(400, "expected header fields, each a line: NAME: VALUE")
        name, value = field[1].lower(), field[2].strip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    host = fields.get("host", "" if minor == "0" else "?")
    if not _HOST.fullmatch(host):
        raise Refused(400, "expected one Host field, with one name or address")
    if method not in ("GET", "HEAD"):
        raise Refused(405, "expected GET or HEAD: nothing can be changed here")
    path, _, query = target.partition("?")
    if path.lower().startswith("http://"):  # as a proxy is asked
        path = "/" + path[7:].partition("/")[2]
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    wanted = {name: value for name, _, value in pairs}
    near = _NEAR.fullmatch(host) is not None
    return Request(method, path, wanted, fields.get("accept", ""), minor != "0", near)


def head(status: int, kind: str, *, chunks: bool, policy: str = NOTHING) -> bytes:
    """Write the head of an answer of a content ``kind``."""
    lines = [
        f"HTTP/1.1 {status} {_WORDS[status]}",
        f"Content-Type: {kind}",
        "Cache-Control: no-store",
        f"Content-Security-Policy: {policy}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if chunks:
        lines.append("Transfer-Encoding: chunked")
    if status == 405:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def chunk(piece: bytes) -> bytes:
    """Write a piece that is not empty as a chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_CHUNK = b"0\r\n\r\n"


def refusal(refused: Refused, *, only_head: bool = False) -> Generator[bytes, object, None]:
    """Write the answer to a request that is refused, without words if that is of method HEAD."""
    yield head(refused.status, "text/plain; charset=utf-8", chunks=False)
    if not only_head:
        yield f"{refused}\n".encode()
