"""What is open, as it is looked at and listed."""

import contextlib
import functools
import os
import socket

import pytest

from sniproxy.dataplane import look
from sniproxy.dataplane.counts import (
    CONNECTIONS,
    DESCRIPTORS,
    DOWN,
    HAS_OPEN,
    LINES_DROPPED,
    MOST_DESCRIPTORS,
    OPEN,
    OTHERS,
    UP,
)
from sniproxy.dataplane.listing import Seen, page
from sniproxy.dataplane.look import Look
from tests.hello import hello
from tests.plane import Plane

HELLO = hello("a.example")
Pair = tuple[socket.socket, socket.socket]


def relayed(plane: Plane, count: int) -> list[Pair]:
    backend = plane.backend("a.example")
    return [(plane.client(HELLO), backend.accept()) for _ in range(count)]


def looked(plane: Plane, one: Look) -> list[int]:
    """Have it looked; give the numbers of the host."""
    done: list[bool] = []
    one.begin(lambda: done.append(True))
    one.begin(lambda: done.append(True))
    while len(done) < 2:
        plane.clock.next_one()
        plane.turn()
    return plane.connections.counts.hosts.row("a.example").tolist()


@pytest.mark.parametrize("slice_", [1, 3, 1000])
def test_bytes_of_open_connections_are_counted_once(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, slice_: int
) -> None:
    monkeypatch.setattr(look, "SLICE", slice_)
    pairs = relayed(plane, 3)
    plane.turn()
    one = Look(plane.connections, 99)
    row = looked(plane, one)
    assert (row[CONNECTIONS], row[UP], row[DOWN], row[HAS_OPEN]) == (3, 3 * len(HELLO), 0, 3)
    assert looked(plane, one) == row
    client, stream = pairs[0]
    stream.sendall(b"12345")
    assert plane.read(client, 5) == b"12345"
    client.close()
    stream.close()
    plane.until(lambda: plane.connections.totals.open == 2)
    row = looked(plane, one)
    assert (row[UP], row[DOWN], row[HAS_OPEN]) == (3 * len(HELLO), 5, 2)
    numbers = plane.connections.counts.numbers
    assert (numbers[OPEN], numbers[MOST_DESCRIPTORS]) == (2, 99)
    # All there are in the process, watched or not; but not those with far greater numbers, which
    # some shells pass on. The list has one of its own.
    usual = len(plane.poller.some(0, 10_000)) + look.ABOVE
    used = [fd for fd in os.listdir("/proc/self/fd") if int(fd) < usual]
    assert numbers[DESCRIPTORS] == len(used) - 1 > len(plane.poller.watchers())
    assert len(plane.connections.told) == 2
    assert plane.connections.counts.hosts.row(OTHERS).tolist() == [0] * 5


def test_a_look_leaves_each_turn_to_others(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever timers there are: each of them could have it go on."""
    monkeypatch.setattr(look, "SLICE", 1)
    relayed(plane, 3)
    one, done = Look(plane.connections, 99), []
    one.begin(lambda: done.append(plane.poller.turn))
    before = plane.poller.turn
    assert one._go_on() == look.PAUSE
    for _ in range(50):
        one._go_on()
    assert one._at == 1
    while not done:
        plane.turn()
        one._go_on()
        one._go_on()
    assert done[0] - before >= len(plane.poller.watchers())


def test_each_who_waits_for_a_look_is_told_though_memory_fails_for_one(plane: Plane) -> None:
    one, done = Look(plane.connections, 99), 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == 1:
            raise MemoryError

    one.begin(count)
    one.begin(functools.partial(count))
    for _ in range(4):  # timers of the poller call again what has failed so
        with contextlib.suppress(MemoryError):
            one._go_on()
        plane.turn()
    assert done == 3


def test_who_asks_again_before_a_look_has_begun_is_told_once(plane: Plane) -> None:
    """As signals that come one after the other, each of which would be one timer more."""
    one, done = Look(plane.connections, 99), [0]

    def count() -> None:
        done[0] += 1

    for _ in range(5):
        one.begin(count)
    for _ in range(9):
        one._go_on()
        plane.turn()
    assert done == [1]
    looked(plane, one)


def test_lines_that_another_process_has_lost_stay_counted(plane: Plane) -> None:
    """One that has ended, and in whose place this one counts with a log of its own."""
    numbers = plane.connections.counts.numbers
    numbers[LINES_DROPPED] = 7
    one = Look(plane.connections, 99)
    looked(plane, one)
    plane.connections.log.dropped += 2
    looked(plane, one)
    assert numbers[LINES_DROPPED] == 9
    looked(plane, one)
    assert numbers[LINES_DROPPED] == 9


def everything(plane: Plane, most: int) -> list[Seen]:
    found: list[Seen] = []
    following = 0
    while following >= 0:
        some, following = page(plane.connections, following, most)
        assert len(some) <= most
        found += some
    return found


@pytest.mark.parametrize("most", [1, 2, 100])
def test_all_that_is_open_is_listed_once(plane: Plane, most: int) -> None:
    (client, stream), *_ = relayed(plane, 3)
    undecided = plane.client(HELLO[:9])
    refused = plane.client(b"GET")
    plane.turn()
    stream.sendall(b"12345")
    plane.read(client, 5)
    client.shutdown(socket.SHUT_WR)
    plane.turn()
    plane.clock.now += 7
    found = everything(plane, most)
    states = sorted(one.state for one in found)
    assert states == ["half_closed", "hello", "leaving", "relaying", "relaying"]
    by_client = {one.client: one for one in found}

    def seen(one: socket.socket) -> Seen:
        host, port = one.getsockname()
        return by_client[f"{host}:{port}"]

    half = seen(client)
    assert (half.host, half.age, half.up, half.down) == ("a.example", 7, len(HELLO), 5)
    assert half.idle is not None
    assert seen(undecided) == Seen(seen(undecided).client, "", "hello", 7, None, 0, 0)
    assert seen(refused).state == "leaving"
