"""sd_notify(3): the datagram, and that nothing else matters."""

import os
import pathlib
import socket
import threading

import pytest

from sniproxy.process.notify import Store, notify


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_manager_is_told(tmp_path: pathlib.Path, kind: str) -> None:
    address = str(tmp_path / "notify")
    if kind == "abstract":
        address = "@" + address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.setblocking(False)
        notify("READY=1", {"NOTIFY_SOCKET": address})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/no/such/socket", "x" * 200, "@", "a\0b", "vsock:2:1"])
def test_failure_does_not_matter(address: str) -> None:
    notify("READY=1", {"NOTIFY_SOCKET": address})
    notify("READY=1", {})


def test_a_full_queue_does_not_block(tmp_path: pathlib.Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        for _ in range(5000):
            notify("READY=1", {"NOTIFY_SOCKET": address})
        assert manager.recv(100) == b"READY=1"


def test_what_is_not_kept_may_be_closed_late(tmp_path: pathlib.Path) -> None:
    """systemd closes in the background, after it has passed the barrier."""
    address = str(tmp_path / "notify")
    held: list[int] = []

    def manage() -> None:
        held.extend(socket.recv_fds(manager, 1000, 10)[1])
        os.close(socket.recv_fds(manager, 1000, 10)[1][0])

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        thread = threading.Thread(target=manage)
        thread.start()
        kept = Store({"NOTIFY_SOCKET": address}).try_room(2)
        thread.join()
        os.close(held.pop())
        assert not kept()
        os.close(held.pop())
