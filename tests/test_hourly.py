"""A connection that lasts has a line each hour: once each, in pieces, whoever has it."""

import re
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.dataplane import hourly
from sniproxy.dataplane.hourly import HOUR, PAUSE, PIECE, PLACE, Hourly
from tests.clock import Clock
from tests.hello import hello
from tests.plane import Plane
from tests.test_handover import after, before, both_ways, pass_on, relay

HELLO = hello("a.example")
# Fixtures of the test of a hand-over.
__all__ = ["after", "before"]


class One:
    """Something that lasts, and notes when it was told of."""

    def __init__(self, clock: Clock, accepted_at: float) -> None:
        self._clock = clock
        self.accepted_at = accepted_at
        self.told: list[float] = []

    def log_open(self) -> None:
        self.told.append(self._clock.now)


@settings(deadline=None)
@given(
    now=st.floats(0, 1e6),
    ages=st.lists(st.floats(0, 3 * HOUR), min_size=1, max_size=20),
    renewals=st.lists(st.floats(0, 3 * HOUR), max_size=3),
)
def test_a_line_each_hour_wherever_it_goes_on(
    now: float, ages: list[float], renewals: list[float]
) -> None:
    """Each process takes over those that there are, and misses and repeats nothing."""
    clock = Clock()
    clock.now = begin = now + 3 * HOUR
    ones = [One(clock, begin - age) for age in ages]
    times = [*sorted(renewals), 4 * HOUR]
    for time in times:
        process_clock = Clock()
        process_clock.now = clock.now
        clock = process_clock
        for one in ones:
            one._clock = clock
        here = Hourly(clock.later, lambda clock=clock: clock.now)
        for one in ones:
            here.start(one)
        clock.advance(max(0.0, begin + time - clock.now))
    for one in ones:
        # The first hours are those before us.
        first = -(-(begin - one.accepted_at) // HOUR) if one.told else 1
        hours = [round((at - one.accepted_at) // HOUR) for at in one.told]
        assert hours == list(range(hours[0], hours[0] + len(hours)))
        assert hours[0] in (first, max(1, first - 1))
        assert all((at - one.accepted_at) % HOUR <= PLACE + PAUSE for at in one.told)
        assert len(hours) >= 3


def test_many_at_once_are_told_of_in_pieces() -> None:
    clock = Clock()
    here = Hourly(clock.later, lambda: clock.now)
    ones = [One(clock, 0.001 * number) for number in range(1000)]
    for one in ones:
        here.start(one)
    while not ones[0].told:
        clock.next_one()
    for done in range(1, 1000 // PIECE + 2):
        assert sum(len(one.told) for one in ones) == min(1000, done * PIECE)
        # The oldest first; and between two pieces events have their turn.
        assert all(one.told for one in ones[: done * PIECE])
        before = clock.now
        clock.next_one()
        if done <= 1000 // PIECE:
            assert clock.now == pytest.approx(before + PAUSE)
    assert [len(one.told) for one in ones] == [1] * 1000


def test_who_is_over_while_others_are_told_of() -> None:
    clock = Clock()
    here = Hourly(clock.later, lambda: clock.now)
    ones = [One(clock, 0.0) for _ in range(2 * PIECE)]
    for one in ones:
        here.start(one)
    while not ones[0].told:
        clock.next_one()
    for one in ones[1:]:
        here.stop(one)
        here.stop(one)
    clock.advance(60)
    assert [len(one.told) for one in ones] == [1] * PIECE + [0] * PIECE
    assert len(here) == 1


def test_it_rests_where_there_is_nobody() -> None:
    clock = Clock()
    here = Hourly(clock.later, lambda: clock.now)
    assert clock.timers == 0
    for _ in range(2):
        one = One(clock, clock.now)
        here.start(one)
        here.start(one)
        assert clock.timers == 1
        clock.advance(HOUR + PLACE)
        assert len(one.told) == 1
        here.stop(one)
        clock.advance(PLACE)
        assert (clock.timers, len(here)) == (0, 0)


def test_who_was_stopped_for_hours_tells_once() -> None:
    clock, stopped = Clock(), Clock()
    here = Hourly(clock.later, lambda: stopped.now + clock.now)
    one = One(clock, 0.0)
    here.start(one)
    stopped.now = 7 * HOUR
    clock.advance(2 * PLACE)
    assert len(one.told) == 1


# In the data plane.


def opened(plane: Plane) -> list[str]:
    return re.findall(r" host=\S+ end=open (.*)", plane.log)


def test_a_connection_that_lasts_is_visible(plane: Plane) -> None:
    backend = plane.backend("a.example")
    client, stream, _ = relay(plane, backend)
    stream.sendall(b"12345")
    assert plane.read(client, 5) == b"12345"
    plane.clock.advance(HOUR - 1)
    assert opened(plane) == []
    plane.clock.advance(1 + PLACE)
    (line,) = opened(plane)
    assert line == f"hello_ms=0 seconds=3610.0 bytes_up={len(HELLO)} bytes_down=5"
    client.setblocking(True)
    both_ways(plane, client, stream)
    plane.clock.advance(HOUR)
    assert opened(plane)[1:] == [
        f"hello_ms=0 seconds=7210.0 bytes_up={len(HELLO) + 4} bytes_down=9"
    ]
    address = client.getsockname()
    assert plane.log.count(f"client={address[0]}:{address[1]} local=127.0.0.1:") == 2
    client.close()
    stream.close()
    plane.until(lambda: not plane.connections.totals.open)
    plane.clock.advance(2 * HOUR)
    assert len(opened(plane)) == 2
    assert plane.log.count("end=closed") + plane.log.count("end=reset") == 1


def test_no_line_where_none_is_wanted(plane: Plane) -> None:
    plane.connections.log.connections = False
    backend = plane.backend("a.example")
    relay(plane, backend)
    assert len(plane.connections.hourly) == 0
    plane.clock.advance(2 * HOUR)
    assert plane.log == ""


def test_hours_go_on_after_a_hand_over(before: Plane, after: Plane) -> None:
    """They count from the accept, and each is told of by one process."""
    backend = before.backend("a.example")
    client, stream, _ = relay(before, backend)
    before.clock.advance(HOUR + 600)
    assert len(opened(before)) == 1
    before.clock.advance(HOUR - 700)
    after.clock.now = before.clock.now
    assert pass_on(before, after) == 1
    before.clock.advance(200)
    after.clock.advance(99)
    assert opened(after) == []
    after.clock.advance(1 + PLACE)
    (line,) = opened(after)
    assert re.match(r"hello_ms=0 seconds=72[01]\d", line)
    assert len(opened(before)) == 1
    both_ways(after, client, stream)


def test_a_client_that_waits_is_not_called_open(plane: Plane) -> None:
    """Nor one that was refused, or whose backend was not reached."""
    plane.backend("full.example", backlog=0)
    clients = [plane.client(hello("full.example")) for _ in range(2)]
    plane.client(hello("no.example"))
    plane.clock.advance(HOUR + PLACE)
    assert len(opened(plane)) == 1
    assert len(plane.connections.hourly) == 1
    assert isinstance(clients[0], socket.socket)
    assert hourly.PLACE * 360 == HOUR
