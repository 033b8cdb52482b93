"""Requests in any cut, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.status.http import MOST_BYTES, Refused, Request, chunk, head, parse

WHOLE = (
    b"GET /status.json?connections=5&after=0.7 HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\n\r\n"
)
READ = Request("GET", "/status.json", {"connections": "5", "after": "0.7"}, "text/plain", True)


def test_a_request_is_read_when_it_is_complete() -> None:
    for size in range(len(WHOLE)):
        assert parse(WHOLE[:size]) is None
    assert parse(WHOLE) == READ
    assert parse(WHOLE + b"GET") == READ
    assert parse(b"\r") is parse(b"\r\n") is None
    assert parse(b"\r\n" + WHOLE.replace(b"\r\n", b"\n")) == READ


def test_odd_ones_that_are_right() -> None:
    request = parse(b"HEAD http://name:9799/metrics HTTP/1.0\n\n")
    assert request == Request("HEAD", "/metrics", {}, "", False)
    for host in (b"", b"[::1]:9799", b"a_b.example:80"):
        assert parse(b"GET / HTTP/1.1\nHost: " + host + b"\nX: \xff\n\n")
    request = parse(b"GET / HTTP/1.0\nAccept: text/plain\nX: y\naccept:*/*\n\n")
    assert request == Request("GET", "/", {}, "text/plain, */*", False)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("", True),
        ("localhost:9799", True),
        ("proxy", True),
        ("127.0.0.1:9799", True),
        ("[::ffff:127.0.0.1]:9799", True),
        ("sniproxy.LocalHost", True),
        ("a.example", False),
        ("a.example.:9799", False),
        ("127.0.0.1.a.example", False),
        ("localhost.a.example:80", False),
    ],
)
def test_a_name_of_the_dns_is_nobodys(host: str, near: bool) -> None:
    request = parse(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert request is not None
    assert request.near == near


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"\r\n\0", 400),
        (b"PUT / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\xff\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        (b"a" * (MOST_BYTES + 1), 431),
        (b"GET / HTTP/1.0\r\nX: " + b"a" * MOST_BYTES + b"\r\n\r\n", 431),
    ],
)
def test_what_is_none_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(Refused) as refused:
        parse(data)
    assert refused.value.status == status


def test_spaces_take_no_time_of_anybody() -> None:
    """Where each costs a look at all others, this is not over before the tests' time is."""
    field = b"X: a" + b" " * (MOST_BYTES - 100) + b"b \t\r\n"
    for _ in range(500):
        assert parse(WHOLE[:-2] + field + b"\r\n") == READ


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_not_complete(data: bytes) -> None:
    try:
        request = parse(data)
    except Refused as refused:
        head(refused.status, "text/plain", chunks=False)  # it has words for it
    else:
        assert request is None


def test_chunks() -> None:
    assert chunk(b"a" * 26) == b"1a\r\n" + b"a" * 26 + b"\r\n"
    assert b"Allow: GET, HEAD\r\n" in head(405, "text/plain", chunks=False)
    assert head(200, "a/b", chunks=True).endswith(b"Transfer-Encoding: chunked\r\n\r\n")
