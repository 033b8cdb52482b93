"""A connection that was accepted and forgotten is found among all that is open, and no other."""

import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.stray import close_strays


def never(_error: Exception) -> None:
    raise AssertionError


@pytest.fixture(params=["tcp", "unix"])
def listening(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[socket.socket]:
    if request.param == "tcp":
        made = socket.create_server(("127.0.0.1", 0))
    else:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / "listening"))
        made.listen()
    made.settimeout(20)
    yield made
    made.close()


class Known:
    """A watcher to whom nothing happens."""

    def ready(self, mask: int) -> None:
        raise AssertionError(mask)

    def resume(self) -> None:
        raise AssertionError

    def abandon(self) -> None:
        raise AssertionError

    def stop(self) -> bool:
        return False


def test_only_what_was_accepted_here_and_has_no_watcher_is_closed(
    listening: socket.socket,
) -> None:
    poller = Poller(never)
    others = [socket.create_server(("127.0.0.1", 0)), *socket.socketpair()]
    clients = []
    for _ in range(3):
        clients.append(socket.socket(listening.family))
        clients[-1].connect(listening.getsockname())
    known, _ = listening.accept()
    poller.watch(known.fileno(), Known())
    strays = [listening._accept()[0] for _ in range(2)]  # type: ignore[attr-defined]
    close_strays(listening, poller)
    assert [client.recv(1) for client in clients[1:]] == [b"", b""]
    for fd in strays:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    for one in (known, listening, *others, *clients):
        os.fstat(one.fileno())
        one.close()
    poller.close()
