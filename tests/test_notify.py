"""sd_notify(3): the datagram, and that nothing else matters."""

import pathlib
import socket

import pytest

from sniproxy.process.notify import notify


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
