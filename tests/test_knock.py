"""That no backend holds up who only knocks."""

import array
import os
import signal
import socket
import struct

import pytest

from sniproxy.tools import knock
from tests.conftest import NOT_APPLICABLE
from tests.processes import in_child


def lingering() -> socket.socket:
    """Make a TCP socket whose last close sleeps for an hour: its peer never reads."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        sender = socket.create_connection(listening.getsockname())
        peer, _ = listening.accept()
    os.dup(peer.detach())  # open as long as this process is
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return sender


def pass_on(backend: socket.socket, *passed: socket.socket) -> None:
    numbers = array.array("i", [one.fileno() for one in passed])
    backend.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
    for one in passed:
        one.close()


def test_nothing_may_be_passed() -> None:
    client, backend = socket.socketpair()
    with backend, lingering() as passed:
        try:
            client.setsockopt(socket.SOL_SOCKET, 83, 1)
        except OSError:
            pytest.skip(NOT_APPLICABLE + "before Linux 6.16 it can't be forbidden")
        with knock.released(client), pytest.raises(PermissionError):
            pass_on(backend, passed)
        passed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


def test_where_that_cannot_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release of what was passed does not sleep, however much it is."""
    monkeypatch.setattr(knock, "SO_PASSRIGHTS", 1 << 20)  # as on a kernel that does not know it

    def work() -> None:
        client, backend = socket.socketpair()
        with knock.released(client):
            pass_on(backend, lingering(), lingering())
            pass_on(backend, lingering())

    in_child(work)


def test_the_timer_of_whoever_calls_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knock, "SO_PASSRIGHTS", 1 << 20)

    def work() -> None:
        signal.setitimer(signal.ITIMER_REAL, 1000, 2000)
        handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
        with knock.released(socket.socket()):
            pass
        left, again = signal.getitimer(signal.ITIMER_REAL)
        assert left > 900
        assert again == 2000
        assert signal.signal(signal.SIGALRM, handler) == signal.SIG_IGN

    in_child(work)
