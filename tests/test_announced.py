"""Clients that come through a balancer: whom it announces, and what is made of what it sends."""

import functools
import os
import pathlib
import socket
from collections.abc import Callable

import pytest

from sniproxy.dataplane.announced import AnnouncedArrival
from sniproxy.dataplane.connections import PATIENCE
from sniproxy.parser.proxy_header import version_1, version_2
from tests.end_to_end.harness import Backend, reset
from tests.hello import hello, message, records
from tests.plane import Plane, alert
from tests.test_handover import after, before, pass_on  # noqa: F401 - fixtures
from tests.test_proxy_header import FROM, IPV4, TO, UNIX, block, tlv

HELLO = hello("a.example")
V1 = version_1(FROM, TO)
V2 = block(0x21, 0x11, IPV4 + tlv(4, bytes(50)) + tlv(2, b"other.example") + tlv(5, b"id"))
LOCAL = block(0x20, 0, b"")
WHO = f"client={FROM[0]}:{FROM[1]} local={TO[0]}:{TO[1]}"
NAMELESS = records(message(None))
Announce = Callable[..., socket.socket]


@pytest.fixture
def announce(plane: Plane) -> Announce:
    """Connect a balancer that has sent something."""
    return functools.partial(plane.client, kind=AnnouncedArrival)


def served(plane: Plane, client: socket.socket, backend: Backend) -> bytes:
    """Have a client's backend answer it; give what came in front of the hello."""
    plane.until(lambda: not plane.connections.undecided)
    stream = backend.accept()
    first = b""
    while not first.endswith(HELLO):
        first += plane.read(stream, 1)
    stream.setblocking(True)
    stream.sendall(b"served")
    assert plane.read(client, 6) == b"served"
    return first.removesuffix(HELLO)


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize(
    "cut", ["at once", "the header first", "byte by byte", "in the header", "in the hello"]
)
def test_any_cut(plane: Plane, announce: Announce, header: bytes, cut: str) -> None:
    backend = plane.backend("a.example")
    pathlib.Path("a.example/send-proxy-v2").touch()
    wire = header + HELLO
    sizes = {
        "at once": len(wire),
        "the header first": len(header),
        "in the header": 10,
        "in the hello": len(header) + 3,
    }
    size = sizes.get(cut, 1)
    client = announce(wire[:size])
    rest = wire[size:]
    while rest:
        part, rest = (rest[:1], rest[1:]) if cut == "byte by byte" else (rest, b"")
        client.sendall(part)
        plane.turn(2)
    passed = tlv(5, b"id") if header == V2 else b""
    assert served(plane, client, backend) == version_2(FROM, TO, "a.example", passed)
    assert not plane.connections.undecided
    client.close()
    backend.close()
    plane.until(lambda: not plane.connections.totals.open)
    assert f"{WHO} host=a.example" in plane.log


@pytest.mark.parametrize("version", [1, 2])
def test_who_is_announced_is_told_to_the_backend(
    plane: Plane, announce: Announce, version: int
) -> None:
    """By either version, whichever the balancer speaks; IPv6, and IPv4 as such."""
    backend = plane.backend("a.example")
    pathlib.Path(f"a.example/send-proxy-v{version}").touch()
    six = ("2001:db8::1", 1), ("2001:db8::2", 443)
    mapped = ("::ffff:192.0.2.1", 40000), ("::ffff:198.51.100.2", 443)
    for ends in ((FROM, TO), six, mapped):
        for header in (version_1(*ends), version_2(*ends, "")):
            client = announce(header + HELLO)
            expected = version_1(*ends) if version == 1 else version_2(*ends, "a.example")
            assert served(plane, client, backend) == expected


def test_the_way_of_a_unix_client(plane: Plane, announce: Announce) -> None:
    backend = plane.backend("a.example")
    client = announce(block(0x21, 0x31, UNIX) + HELLO)
    pathlib.Path("a.example/send-proxy-v2").touch()
    assert served(plane, client, backend) == b""
    client = announce(block(0x21, 0x31, UNIX) + HELLO)
    head = served(plane, client, backend)
    assert head == block(0x21, 0x31, UNIX + tlv(2, b"a.example"))
    pathlib.Path("a.example/send-proxy-v2").unlink()
    pathlib.Path("a.example/send-proxy-v1").touch()
    client = announce(block(0x21, 0x31, UNIX) + HELLO)
    assert served(plane, client, backend) == b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize(
    "header",
    [LOCAL, block(0x20, 0x11, IPV4 + tlv(5, b"id")), block(0x21, 0, b""), b"PROXY UNKNOWN x\r\n"],
)
def test_nobody_announced_is_the_connection_itself(
    plane: Plane, announce: Announce, header: bytes
) -> None:
    backend = plane.backend("a.example")
    pathlib.Path("a.example/send-proxy-v1").touch()
    client = announce(header + HELLO)
    ends = client.getsockname(), client.getpeername()
    assert served(plane, client, backend) == version_1(*ends)
    client.close()
    backend.close()
    plane.until(lambda: not plane.connections.totals.open)
    assert f"client=127.0.0.1:{ends[0][1]} " in plane.log


def test_tlvs_of_an_unspecified_family_go_on(plane: Plane, announce: Announce) -> None:
    backend = plane.backend("a.example")
    pathlib.Path("a.example/send-proxy-v2").touch()
    client = announce(block(0x21, 0, tlv(0xEA, b"vpce")) + HELLO)
    ends = client.getsockname(), client.getpeername()
    head = served(plane, client, backend)
    assert head == version_2(*ends, "a.example", tlv(0xEA, b"vpce"))


def test_a_client_without_a_name(plane: Plane, announce: Announce) -> None:
    backend = plane.backend("_nosni")
    pathlib.Path("_nosni/send-proxy-v2").touch()
    announce(V2 + NAMELESS)
    stream = backend.accept()
    expected = version_2(FROM, TO, "", tlv(5, b"id")) + NAMELESS
    assert plane.read(stream, len(expected)) == expected


# What is no header, and who is no client.


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (HELLO, "no_proxy_header"),
        (b"GET / HTTP/1.1\r\n\r\n", "no_proxy_header"),
        (b"PROXY TCP4 nobody\r\n" + HELLO, "bad_proxy_header"),
        (block(0x21, 0x11, IPV4[:-1]) + HELLO, "bad_proxy_header"),
        (block(0x21, 0x11, IPV4 + tlv(3, b"\1\2\3\4")) + HELLO, "bad_proxy_header"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_bad_headers_are_closed_and_counted(
    plane: Plane, announce: Announce, wire: bytes, reason: str, whole: bool
) -> None:
    plane.backend("a.example")
    client = announce(wire if whole else wire[:1])
    if not whole:
        plane.turn()
        client.sendall(wire[1:])
    # Without an alert: who speaks is no TLS client.
    assert plane.read(client, 99) == b""
    client.close()
    plane.until(lambda: not plane.connections.totals.open)
    assert plane.connections.totals.refused == {reason: 1}
    assert f"host=none end=refused:{reason} " in plane.log


def test_a_header_that_is_cut_off(plane: Plane, announce: Announce) -> None:
    for wire in (V1[:20], V2[:20], b"\r"):
        client = announce(wire)
        client.shutdown(socket.SHUT_WR)
        assert plane.read(client, 99) == b""
    plane.until(lambda: not plane.connections.totals.open)
    assert plane.connections.totals.refused == {"bad_proxy_header": 3}


def quietly(plane: Plane) -> None:
    """See that all has ended without a word."""
    plane.until(lambda: not plane.connections.totals.open)
    assert plane.connections.totals.refused == {}
    assert plane.log == ""


UNKNOWN = b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize("first", [b"", LOCAL, UNKNOWN])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_checks_are_not_told_of(plane: Plane, announce: Announce, first: bytes, how: str) -> None:
    client = announce(*([first] if first else []))
    plane.turn()
    if how == "reset":
        reset(client)
    elif how == "close":
        client.close()
    else:
        client.shutdown(socket.SHUT_WR)
        assert plane.read(client, 99) == b""
    quietly(plane)


@pytest.mark.parametrize("mapped", ["", "::ffff:"])
def test_a_balancer_that_announces_itself_is_a_check(
    plane: Plane, announce: Announce, mapped: str
) -> None:
    """HAProxy's, with version 1, which has no LOCAL. Anybody else at its address is a client."""
    client = announce()
    (ours, port), theirs = client.getsockname(), client.getpeername()
    client.sendall(version_1((mapped + ours, port), (mapped + theirs[0], theirs[1])))
    plane.turn(2)
    reset(client)
    quietly(plane)
    client = announce(version_1((ours, port ^ 1), theirs))
    plane.turn()
    reset(client)
    plane.until(lambda: not plane.connections.totals.open)
    assert (
        f"client={ours}:{port ^ 1} local={theirs[0]}:{theirs[1]} host=none end=reset_by_client "
        in plane.log
    )


def test_a_check_that_stays(plane: Plane, announce: Announce) -> None:
    checks = [announce(LOCAL), announce()]
    plane.clock.advance(PATIENCE + 0.2)
    for client in checks:
        assert plane.read(client, 99) == b""
    quietly(plane)


def test_who_is_announced_and_says_nothing_is_no_check(plane: Plane, announce: Announce) -> None:
    client = announce(V2)
    client.shutdown(socket.SHUT_WR)
    assert plane.read(client, 99) == alert(50)
    plane.until(lambda: not plane.connections.totals.open)
    # As on any other socket: it is no refusal, and has a line where each connection has one.
    assert plane.connections.totals.refused == {}
    assert f"{WHO} host=none end=refused:no_hello " in plane.log


def test_the_end_in_a_hello_is_a_refusal(plane: Plane, announce: Announce) -> None:
    client = announce(LOCAL + HELLO[:9])
    client.shutdown(socket.SHUT_WR)
    assert plane.read(client, 99) == alert(50)
    assert plane.connections.totals.refused == {"end_of_stream_in_hello": 1}


# Time and memory.


def test_ten_seconds_for_both(plane: Plane, announce: Announce) -> None:
    plane.backend("a.example")
    without, with_half, with_header = announce(), announce(V1[:9]), announce(V1)
    plane.clock.advance(PATIENCE - 0.2)
    with_half.sendall(V1[9:])
    plane.turn(3)
    assert len(plane.connections.undecided) == 3
    plane.clock.advance(0.5)
    assert plane.read(without, 99) == b""
    # The others have been announced, and are TLS clients that are too slow.
    assert plane.read(with_half, 99) == plane.read(with_header, 99) == alert(90)
    assert plane.connections.totals.refused == {"hello_too_slow": 2}
    assert plane.log.count("client=192.0.2.1:40000 ") == 2


def test_a_header_that_does_not_come_in_time(plane: Plane, announce: Announce) -> None:
    client = announce(V2[:20])
    plane.clock.advance(PATIENCE + 0.2)
    assert plane.read(client, 99) == b""
    assert plane.connections.totals.refused == {"no_proxy_header": 1}


def test_what_is_kept_of_a_header_is_counted(plane: Plane, announce: Announce) -> None:
    long = block(0x21, 0x11, IPV4 + tlv(4, bytes(16_000)))
    client = announce(long[:15_000])
    assert plane.connections._kept >= 15_000
    client.sendall(long[15_000:])
    plane.until(lambda: plane.connections._kept == len(long))
    client.sendall(HELLO[:50])
    plane.until(lambda: plane.connections._kept > len(long) + 50)
    assert plane.connections._kept < len(long) + 500
    client.sendall(HELLO[50:60])
    plane.turn(3)
    assert len(long) + 60 < plane.connections._kept < len(long) + 500
    client.close()
    plane.until(lambda: not plane.connections.totals.open)
    assert not plane.connections._kept


def test_one_that_must_make_room(plane: Plane, announce: Announce) -> None:
    client = announce(V2[:20])
    assert plane.connections.evict_oldest()
    assert plane.read(client, 99) in (b"", alert(90))
    assert plane.connections.totals.refused == {"evicted": 1}


# From one process to the next.


@pytest.mark.parametrize(
    "size", [0, 5, 20, len(V2) - 1, len(V2), len(V2) + 1, len(V2) + 60], ids=str
)
def test_half_of_it_goes_on_in_the_next_process(before: Plane, after: Plane, size: int) -> None:  # noqa: F811
    backend = before.backend("a.example")
    pathlib.Path("a.example/send-proxy-v2").touch()
    wire = V2 + HELLO
    client = before.client(*([wire[:size]] if size else []), kind=AnnouncedArrival)
    before.turn()
    pass_on(before, after)
    client.sendall(wire[size:])
    head = served(after, client, backend)
    assert head == version_2(FROM, TO, "a.example", tlv(5, b"id"))


def test_who_waits_in_line_is_still_who_was_announced(before: Plane, after: Plane) -> None:  # noqa: F811
    os.mkdir("a.example")
    for name in ("wait-for-backend", "send-proxy-v2"):
        pathlib.Path(f"a.example/{name}").touch()
    client = before.client(V2 + HELLO, kind=AnnouncedArrival)
    pass_on(before, after)
    backend = Backend(pathlib.Path("a.example"))
    after.clock.advance(0.2)
    head = served(after, client, backend)
    assert head == version_2(FROM, TO, "a.example", tlv(5, b"id"))
    backend.close()


@pytest.mark.parametrize("logged", [True, False])
def test_a_relayed_one_is_still_who_was_announced(
    before: Plane,  # noqa: F811
    after: Plane,  # noqa: F811
    logged: bool,
) -> None:
    """Also where nothing was to be logged of it so far."""
    before.connections.log.connections = logged
    backend = before.backend("a.example")
    client = before.client(V1 + HELLO, kind=AnnouncedArrival)
    served(before, client, backend)
    pass_on(before, after)
    client.close()
    backend.close()
    after.until(lambda: not after.connections.totals.open)
    # The address that it had connected to has gone with the header.
    assert "client=192.0.2.1:40000 local=unknown host=a.example" in after.log


def test_a_check_goes_on_as_one(before: Plane, after: Plane) -> None:  # noqa: F811
    clients = [before.client(LOCAL, kind=AnnouncedArrival), before.client(kind=AnnouncedArrival)]
    before.turn()
    pass_on(before, after)
    for client in clients:
        client.close()
    quietly(after)


def test_a_client_goes_on_as_one(before: Plane, after: Plane) -> None:  # noqa: F811
    """It is not taken for the balancer itself where its header is read anew."""
    client = before.client(V1, kind=AnnouncedArrival)
    before.turn()
    pass_on(before, after)
    reset(client)
    after.until(lambda: not after.connections.totals.open)
    assert f"{WHO} host=none end=reset_by_client " in after.log


def test_a_hello_larger_than_the_buffer_goes_on(before: Plane, after: Plane) -> None:  # noqa: F811
    """More than one read takes of it, behind a header."""
    backend = before.backend("a.example")
    wire = hello("a.example", padding=50_000, record=1)
    client = before.client(V2, kind=AnnouncedArrival)
    client.setblocking(False)
    sent = 0
    while sent < 290_000:
        try:
            sent += client.send(wire[sent:290_000])
        except BlockingIOError:
            before.turn()
    before.turn(9)
    pass_on(before, after)
    client.setblocking(False)
    while sent < len(wire):
        try:
            sent += client.send(wire[sent:])
        except BlockingIOError:
            after.turn()
    after.until(lambda: not after.connections.undecided)
    stream = backend.accept()
    assert after.read(stream, len(wire)) == wire


def test_lengths_at_the_end_of_the_buffer(plane: Plane, announce: Announce) -> None:
    """A header and more behind it than a read takes: the rest is relayed in its order."""
    backend = plane.backend("a.example")
    early = bytes(range(256)) * 1024
    client = announce(V2 + HELLO)
    client.sendall(early)
    stream = backend.accept()
    assert plane.read(stream, len(HELLO) + len(early)) == HELLO + early
