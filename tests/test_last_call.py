"""A socket that begins no more connections, on the kernel's own word."""

import pathlib
import select
import socket

import pytest

from sniproxy.dataplane.last_call import begin_no_more


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_tcp(family: int, host: str) -> None:
    """Who has connected stays, in the queue and behind it; who has not gets no answer yet."""
    with (
        socket.create_server((host, 0), family=family) as listening,
        socket.create_connection(listening.getsockname()[:2], 20) as early,
        socket.socket(family) as late,
    ):
        begin_no_more(listening)
        late.setblocking(False)
        late.connect_ex(listening.getsockname())
        assert select.select([], [late], [], 0.2) == ([], [], [])
        accepted, _ = listening.accept()
        with accepted:
            early.sendall(b"still here")
            assert accepted.recv(99) == b"still here"
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_unix(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "socket")
    with (
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(socket.AF_UNIX) as early,
        socket.socket(socket.AF_UNIX) as late,
    ):
        listening.bind(path)
        listening.listen()
        early.connect(path)
        begin_no_more(listening)
        with pytest.raises(ConnectionRefusedError):
            late.connect(path)
        early.sendall(b"still here")
        with listening.accept()[0] as accepted:
            assert accepted.recv(99) == b"still here"


def test_where_it_is_not_allowed_nothing_has_changed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        lock_filter = 44  # SO_LOCK_FILTER, socket(7)
        listening.setsockopt(socket.SOL_SOCKET, lock_filter, 1)
        begin_no_more(listening)
        with socket.create_connection(address, 20), listening.accept()[0]:
            pass
