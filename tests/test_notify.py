"""sd_notify(3): the datagram, that nothing else matters, and what is kept for us."""

import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator

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


class Manager(threading.Thread):
    """A service manager's side of the store: keeps descriptors, as systemd does, up to a limit."""

    def __init__(self, address: str, limit: int) -> None:
        super().__init__()
        self.stored: list[tuple[str, int]] = []
        self.limit = limit
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.address = address

    def run(self) -> None:
        while True:
            text, numbers, _, _ = socket.recv_fds(self.socket, 4096, 253)
            words = dict(line.split("=", 1) for line in text.decode().splitlines())
            self.act(words, list(numbers))
            if "STOP" in words:
                return

    def act(self, words: dict[str, str], numbers: list[int]) -> None:
        if "FDSTOREREMOVE" in words:
            gone = [fd for name, fd in self.stored if name == words["FDNAME"]]
            self.stored = [one for one in self.stored if one[1] not in gone]
            numbers += gone
        elif "FDSTORE" in words:
            while numbers and len(self.stored) < self.limit:
                self.stored.append((words["FDNAME"], numbers.pop(0)))
        for number in numbers:  # what there is no room for, and the barrier's
            os.close(number)

    def close(self) -> None:
        if self.is_alive():
            notify("STOP=1", {"NOTIFY_SOCKET": self.address})
            self.join()
        self.socket.close()
        for _, number in self.stored:
            os.close(number)


@pytest.fixture
def manager(tmp_path: pathlib.Path) -> Iterator[Callable[[int], Manager]]:
    made: list[Manager] = []

    def make(limit: int) -> Manager:
        made.append(Manager(str(tmp_path / f"notify{len(made)}"), limit))
        return made[-1]

    before = len(os.listdir("/proc/self/fd"))
    yield make
    for one in made:
        one.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("limit", "count", "room"),
    [(0, 1, False), (1, 1, True), (1, 2, False), (7, 8, False), (8, 8, True), (253, 253, True)],
)
def test_room_is_what_is_kept(
    manager: Callable[[int], Manager], limit: int, count: int, room: bool
) -> None:
    one = manager(limit)
    one.start()
    store = Store({"NOTIFY_SOCKET": one.address})
    assert store.managed
    kept = store.try_room(count)
    assert kept() == room
    assert kept() == room
    # And nothing is left of the question.
    assert store.settle()
    assert one.stored == []


def test_more_than_a_message_holds_is_no_room(manager: Callable[[int], Manager]) -> None:
    one = manager(1000)
    one.start()
    assert not Store({"NOTIFY_SOCKET": one.address}).try_room(254)()


def test_what_is_put_stays_under_its_name(manager: Callable[[int], Manager]) -> None:
    one = manager(8)
    one.start()
    store = Store({"NOTIFY_SOCKET": one.address})
    assert store.try_room(2)()
    reader, writer = os.pipe()
    store.put(reader, "sniproxy-parcel.3")
    store.put(reader, "sniproxy-parcel.4")
    assert store.settle()
    assert [name for name, _ in one.stored] == ["sniproxy-parcel.3", "sniproxy-parcel.4"]
    # It may take more than it has said, or not: then it would be lost without a word.
    with pytest.raises(OSError, match="room"):
        store.put(reader, "sniproxy-parcel.5")
    store.remove(["sniproxy-parcel.3", "another"])
    assert store.settle()
    assert [name for name, _ in one.stored] == ["sniproxy-parcel.4"]
    os.close(reader)
    os.close(writer)


def test_without_a_question_nothing_is_put(manager: Callable[[int], Manager]) -> None:
    one = manager(8)
    one.start()
    with pytest.raises(OSError, match="room"):
        Store({"NOTIFY_SOCKET": one.address}).put(0, "sniproxy-parcel.1")


def test_a_manager_that_says_nothing_has_no_room(
    manager: Callable[[int], Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sniproxy.process.notify.BARRIER", 0.05)
    store = Store({"NOTIFY_SOCKET": manager(8).address})
    assert not store.try_room(1)()
    assert not store.settle()


def test_a_manager_that_does_not_read_is_not_waited_for_without_end(
    manager: Callable[[int], Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sniproxy.process.notify.BARRIER", 0.05)
    one = manager(8)
    store = Store({"NOTIFY_SOCKET": one.address})
    for _ in range(2000):
        notify("WATCHDOG=1", {"NOTIFY_SOCKET": one.address})
    assert not store.try_room(1)()
    assert not store.settle()


@pytest.mark.parametrize("address", ["/no/such/socket", "x" * 200, "a\0b"])
def test_a_manager_that_is_not_there_has_no_room(address: str) -> None:
    store = Store({"NOTIFY_SOCKET": address})
    assert store.managed
    assert not store.try_room(1)()
    assert not store.settle()
    store.remove(["x"])


def test_without_a_manager() -> None:
    store = Store({})
    assert not store.managed
    assert not store.try_room(1)()


def test_after_one_failure_no_more_is_tried(
    manager: Callable[[int], Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sniproxy.process.notify.BARRIER", 0.05)
    one = manager(8)
    store = Store({"NOTIFY_SOCKET": one.address})
    store._room = 3
    for _ in range(2000):
        notify("WATCHDOG=1", {"NOTIFY_SOCKET": one.address})
    with pytest.raises(TimeoutError):
        store.put(0, "sniproxy-parcel.1")
    with pytest.raises(OSError, match="room"):
        store.put(0, "sniproxy-parcel.1")


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
