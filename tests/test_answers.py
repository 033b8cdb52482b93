"""Which answer there is to which request."""

import json

import jsonschema
import pytest

from sniproxy.status.answers import answer
from sniproxy.status.http import Refused, Request, parse
from sniproxy.status.metrics import CLASSIC, OPEN_METRICS
from tests.seen import Shown, whole
from tests.test_document import SCHEMA


def request(path: str, *fields: str, method: str = "GET", minor: int = 1) -> Request:
    lines = [f"{method} {path} HTTP/1.{minor}", "Host: a", *fields, "", ""]
    made = parse("\r\n".join(lines).encode())
    assert made is not None
    return made


def unchunked(body: bytes) -> bytes:
    data = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        many = int(size, 16)
        data, ending, body = data + rest[:many], rest[many : many + 2], rest[many + 2 :]
        assert ending == b"\r\n"
        if not many:
            assert body == b""
            return data
    raise AssertionError("no last chunk")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", OPEN_METRICS),
        ("*/*", OPEN_METRICS),
        ("text/plain", CLASSIC),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", CLASSIC),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2", OPEN_METRICS),
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;q=0.5,*/*;q=0.1", CLASSIC),
        ("application/openmetrics-text; q=0, text/plain", CLASSIC),
        ("Text/Plain; Q=0.5 , text/html", CLASSIC),
        ("text/plain;q=0", OPEN_METRICS),
        ("text/plain,application/openmetrics-text", OPEN_METRICS),
    ],
)
def test_who_asks_for_metrics_says_what_it_can_read(accept: str, kind: str) -> None:
    said = whole(answer(Shown(), request("/metrics", f"Accept: {accept}", minor=0)))
    first, _, body = said.partition(b"\r\n\r\n")
    assert f"Content-Type: {kind}".encode() in first.split(b"\r\n")
    assert body.endswith(b"# EOF\n") == (kind == OPEN_METRICS)


def test_chunks_are_for_who_knows_them() -> None:
    new = whole(answer(Shown(), request("/metrics")))
    old = whole(answer(Shown(), request("/metrics", minor=0)))
    assert b"Transfer-Encoding: chunked\r\n" in new
    assert b"Transfer-Encoding" not in old
    assert unchunked(new.partition(b"\r\n\r\n")[2]) == old.partition(b"\r\n\r\n")[2]


def test_a_document_is_of_the_time_it_was_asked_for() -> None:
    said = whole(answer(Shown(), request("/status.json", minor=0)))
    found = json.loads(said.partition(b"\r\n\r\n")[2])
    jsonschema.validate(found, SCHEMA)
    assert found["time"] > 1_700_000_000
    assert "open_connections" not in found


@pytest.mark.parametrize("path", ["/", "/metrics", "/status.json?connections=1000"])
def test_nobody_looks_for_a_head(path: str) -> None:
    (only,) = answer(Shown(), request(path, method="HEAD"))
    assert isinstance(only, bytes)
    assert only.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/metrics/", 404),
        ("/../metrics", 404),
        ("/%6detrics", 404),
        ("*", 404),
        ("/status.json?connections=1001", 400),
        ("/status.json?connections=01001", 400),
        ("/status.json?connections=", 400),
        ("/status.json?connections=1e2", 400),
        ("/status.json?connections=%31", 400),
        ("/status.json?connections=\u00b2", 400),
        ("/status.json?connections=1&after=", 400),
        ("/status.json?connections=1&after=0.-1", 400),
        ("/status.json?connections=1&after=1.0000000000", 400),
        ("/status.json?connections=1&after=0.0.0", 400),
    ],
)
def test_what_is_refused_is_refused_at_once(path: str, status: int) -> None:
    asked = Request("GET", *split(path), accept="", chunks=True)
    with pytest.raises(Refused, match="expected") as refused:
        answer(Shown(), asked)
    assert refused.value.status == status


def split(path: str) -> tuple[str, dict[str, str]]:
    bare, _, query = path.partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return bare, {name: value for name, _, value in pairs}
