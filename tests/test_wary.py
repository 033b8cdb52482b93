"""Descriptors that come along are seen, whether their bytes are read or not."""

import array
import errno
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from sniproxy.dataplane.relay import End
from sniproxy.dataplane.wary import WaryBackend, WaryRelay
from sniproxy.resolver import hosts
from tests.end_to_end.harness import Backend
from tests.hello import hello
from tests.plane import Plane

HOST = "a.example"


def pass_one(stream: socket.socket, data: bytes = b"x") -> None:
    """Send bytes, and with them the end of a pipe."""
    read, write = os.pipe()
    rights = array.array("i", [write])
    stream.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(write)
    os.close(read)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, WaryBackend]]:
    theirs, ours = socket.socketpair()
    wary = WaryBackend(ours)
    yield theirs, wary
    theirs.close()
    wary.close()


def test_it_reads_as_a_socket_does(pair: tuple[socket.socket, WaryBackend]) -> None:
    theirs, wary = pair
    buffer = bytearray(100)
    with pytest.raises(BlockingIOError):
        wary.recv_into(buffer, 0, socket.MSG_DONTWAIT)
    theirs.sendall(b"some bytes")
    assert wary.recv_into(buffer, 0, socket.MSG_DONTWAIT) == 10
    assert buffer[:10] == b"some bytes"
    assert not wary.has_passed()
    theirs.close()
    assert wary.recv_into(buffer, 0, socket.MSG_DONTWAIT) == 0
    assert not wary.has_passed()


def test_what_is_read(pair: tuple[socket.socket, WaryBackend]) -> None:
    theirs, wary = pair
    theirs.sendall(b"before")
    pass_one(theirs)
    with pytest.raises(OSError, match=os.strerror(errno.EBADMSG)) as raised:
        wary.recv_into(bytearray(100), 0, socket.MSG_DONTWAIT)
    assert raised.value.errno == errno.EBADMSG
    assert wary.has_passed()


@pytest.mark.parametrize("before", [0, 1, 100_000])
@pytest.mark.parametrize("ended", [False, True])
def test_what_is_not_read(
    pair: tuple[socket.socket, WaryBackend], before: int, ended: bool
) -> None:
    theirs, wary = pair
    theirs.sendall(bytes(before))
    pass_one(theirs)
    if ended:
        theirs.close()
    assert wary.has_passed()


@pytest.fixture
def plane(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    """One on a kernel that can't refuse descriptors, as far as we know."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hosts, "can_refuse_descriptors", lambda: False)
    made = Plane(tmp_path)
    yield made
    made.close()


class Relayed:
    """A connection, and those that were said to have passed descriptors."""

    def __init__(self, plane: Plane) -> None:
        self.passed: list[End] = []
        assert isinstance(plane.connections.relay, WaryRelay)
        plane.connections.relay.passed = self.passed.append
        backend: Backend = plane.backend(HOST)
        self.client = plane.client(hello(HOST))
        self.stream = backend.accept()


def test_a_connection_ends_by_them(plane: Plane) -> None:
    one = Relayed(plane)
    pass_one(one.stream)
    plane.until(lambda: bool(one.passed))
    assert plane.read(one.client, 1) == b""
    assert [end.host for end in one.passed] == [HOST]
    assert " end=backend_passed_descriptors " in plane.log


def test_those_that_lie_unread_at_the_end_are_seen(plane: Plane) -> None:
    one = Relayed(plane)
    pass_one(one.stream)
    plane.connections.close_all()
    assert [end.host for end in one.passed] == [HOST]


def test_nobody_is_blamed_without(plane: Plane) -> None:
    one = Relayed(plane)
    one.stream.sendall(b"answer")
    assert plane.read(one.client, 6) == b"answer"
    one.stream.sendall(b"unread")
    plane.connections.close_all()
    assert not one.passed


def test_what_is_given_up_is_not_read(plane: Plane) -> None:
    """Another process has a copy, and what lies there is that one's."""
    one = Relayed(plane)
    one.stream.sendall(b"later")
    (client,) = (
        each for each in plane.poller.watchers() if isinstance(each, End) and each.of_client
    )
    copy = socket.socket(fileno=os.dup(client.peer.socket.fileno()))
    plane.connections.relay.part(client)
    plane.connections.close(client.socket)
    assert copy.recv(100) == b"later"
    copy.close()
