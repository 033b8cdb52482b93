"""The poller: events, turns, and what becomes of those that fail."""

import os
import socket
from collections.abc import Iterator

import pytest

from sniproxy.dataplane.poller import ERROR, HANG_UP, READ, WRITE, Poller


class Seen:
    """A watcher that notes what it is told."""

    def __init__(self, poller: Poller, breaks: bool = False) -> None:
        self.poller = poller
        self.breaks = breaks
        self.masks: list[int] = []
        self.resumed = 0
        self.abandoned = 0

    def ready(self, mask: int) -> None:
        self.masks.append(mask)
        if self.breaks:
            raise ValueError("broken")

    def resume(self) -> None:
        self.resumed += 1
        if self.breaks:
            raise ValueError("broken")

    def abandon(self) -> None:
        self.abandoned += 1
        if self.breaks:
            raise KeyError("still broken")


@pytest.fixture
def faults() -> list[Exception]:
    return []


@pytest.fixture
def poller(faults: list[Exception]) -> Iterator[Poller]:
    made = Poller(faults.append)
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


Pair = tuple[socket.socket, socket.socket]


def test_each_event_is_told_once(poller: Poller, pair: Pair) -> None:
    """Edge-triggered: what was there already counts, what was told is not told again."""
    one, other = pair
    other.send(b"x")
    seen = Seen(poller)
    poller.watch(one.fileno(), seen)
    poller.select(0)
    assert seen.masks == [READ]
    poller.select(0)
    assert seen.masks == [READ]
    other.send(b"y")
    poller.select(0)
    assert seen.masks == [READ, READ]
    other.shutdown(socket.SHUT_WR)
    poller.select(0)
    assert seen.masks[-1] & HANG_UP
    assert not seen.masks[-1] & ERROR


def test_a_reset_is_an_error(poller: Poller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    with accepted:
        seen = Seen(poller)
        poller.watch(accepted.fileno(), seen)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        poller.select(10)
        assert seen.masks[-1] & ERROR


def test_room_to_write_is_told_where_it_is_wanted(poller: Poller, pair: Pair) -> None:
    one, other = pair
    seen = Seen(poller)
    poller.watch(one.fileno(), seen)
    poller.select(0)
    assert seen.masks == []
    poller.await_write(one.fileno(), write=True)
    poller.select(0)
    assert seen.masks == [WRITE]
    # Either way what is there now counts as an event.
    other.send(b"x")
    poller.select(0)
    poller.await_write(one.fileno(), write=False)
    poller.select(0)
    assert seen.masks[-1] == READ
    late = Seen(poller)
    poller.watch(other.fileno(), late)
    poller.await_write(other.fileno(), write=True)
    poller.select(0)
    assert late.masks == [WRITE]


@pytest.mark.parametrize("shared", [False, True])
def test_a_listening_socket_is_told_until_it_is_empty(poller: Poller, shared: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        seen = Seen(poller)
        poller.watch_listener(listening.fileno(), seen, shared=shared)
        with socket.create_connection(listening.getsockname()):
            for _ in range(3):
                poller.select(1)
            assert seen.masks == [READ] * 3
            poller.unwatch(listening.fileno())
            poller.select(0)
            assert len(seen.masks) == 3
            poller.watch_listener(listening.fileno(), seen, shared=shared)
            poller.select(1)
            assert len(seen.masks) == 4
            poller.unwatch(listening.fileno())


def test_a_descriptor_changes_hands_without_losing_events(poller: Poller, pair: Pair) -> None:
    one, other = pair
    first, second = Seen(poller), Seen(poller)
    poller.watch(one.fileno(), first)
    other.send(b"x")
    poller.watch(one.fileno(), second, watched=True)
    poller.select(0)
    assert (first.masks, second.masks) == ([], [READ])
    assert poller.watchers() == [second]
    poller.forget(one.fileno())
    assert poller.watchers() == []
    # A stale event of a forgotten descriptor goes nowhere.
    other.send(b"y")
    poller.select(0)
    assert len(second.masks) == 1


def test_the_rest_is_done_in_the_next_turn(poller: Poller) -> None:
    seen = Seen(poller)
    poller.again(seen)
    poller.again(seen)
    before = poller.turn
    # It does not wait for an event while somebody has something left to do.
    poller.select(None)
    assert (seen.resumed, poller.turn) == (1, before + 1)
    poller.select(0)
    assert seen.resumed == 1


def test_what_is_put_off_again_waits_for_its_turn(poller: Poller) -> None:
    class Busy(Seen):
        def resume(self) -> None:
            super().resume()
            self.poller.again(self)

    busy = Busy(poller)
    poller.again(busy)
    for turn in range(1, 4):
        poller.select(None)
        assert busy.resumed == turn


def test_an_exception_ends_one_watcher(poller: Poller, pair: Pair, faults: list[Exception]) -> None:
    one, other = pair
    broken, well = Seen(poller, breaks=True), Seen(poller)
    poller.watch(one.fileno(), broken)
    poller.watch(other.fileno(), well)
    one.send(b"x")
    other.send(b"x")
    poller.select(0)
    assert (broken.abandoned, well.masks) == (1, [READ])
    assert [type(fault) for fault in faults] == [KeyError, ValueError]
    poller.again(broken)
    poller.again(well)
    poller.select(0)
    assert (broken.abandoned, well.resumed) == (2, 1)


def test_many_descriptors(poller: Poller) -> None:
    """More than one look-up of events holds: none is lost."""
    pairs = [socket.socketpair() for _ in range(300)]
    watchers = []
    for one, other in pairs:
        watchers.append(Seen(poller))
        poller.watch(one.fileno(), watchers[-1])
        other.send(b"x")
    poller.select(0)
    poller.select(0)
    assert all(watcher.masks == [READ] for watcher in watchers)
    for one, other in pairs:
        poller.forget(one.fileno())
        one.close()
        other.close()
    assert poller.watchers() == []


def test_closing_it_closes_its_descriptor(faults: list[Exception]) -> None:
    before = os.listdir("/proc/self/fd")
    Poller(faults.append).close()
    assert os.listdir("/proc/self/fd") == before
