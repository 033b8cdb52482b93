"""What the kernel knows of a stream."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from sniproxy.dataplane.stream import idle, queued

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6, socket.AF_UNIX], ids=lambda one: one.name)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == socket.AF_UNIX:
        one, other = socket.socketpair()
    else:
        host = "::1" if request.param == socket.AF_INET6 else "127.0.0.1"
        with socket.create_server((host, 0), family=request.param) as listening:
            one = socket.create_connection(listening.getsockname()[:2])
            other, _ = listening.accept()
    yield one, other
    one.close()
    other.close()


def test_what_nobody_has_taken_is_queued(pair: Pair) -> None:
    """Of TCP that is what the other end has no room for; a Unix socket holds what is unread."""
    one, other = pair
    assert queued(one) == 0
    one.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += one.send(bytes(1 << 16))
    assert 0 < queued(one) <= 4 * sent
    while sent:
        sent -= len(other.recv(1 << 20))
    # Of TCP its end learns so a little later.
    while queued(one):
        pass


def test_who_has_sent_or_got_something_is_not_idle(pair: Pair) -> None:
    """Each way: what is longer ago does not count."""
    one, other = pair
    if one.family == socket.AF_UNIX:
        assert (idle(one), idle(other)) == (None, None)
        return
    for sender, receiver in ((one, other), (other, one)):
        for mine in (sender, receiver):
            before = grown(mine)
            while (idle(mine) or 0) >= before:  # it may have taken us long to look
                sender.sendall(b"there")
                receiver.recv(1 << 20)


def grown(one: socket.socket, milliseconds: int = 50) -> int:
    """Wait until it has been idle for so long."""
    while (now := idle(one) or 0) < milliseconds:
        pass
    return now


def test_a_socket_that_is_closed_has_no_clock(pair: Pair) -> None:
    one, _ = pair
    one.close()
    if one.family == socket.AF_UNIX:
        return
    with pytest.raises(OSError, match="Bad file descriptor"):
        idle(one)
