"""Timers, by a clock of the test's own, and that no event keeps one from being called."""

import socket

import pytest

from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.timers import AFTER_A_FAULT, LONGEST, Timers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults() -> list[Exception]:
    return []


@pytest.fixture
def timers(clock: Clock, faults: list[Exception]) -> Timers:
    return Timers(clock, faults.append)


def test_each_is_called_once_it_is_due_in_the_order_of_that(timers: Timers, clock: Clock) -> None:
    called: list[str] = []
    for seconds, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        timers.later(seconds, lambda name=name: called.append(name))  # type: ignore[misc]
    assert timers.wait(None) == 1.0
    assert timers.wait(0.5) == 0.5
    clock.now += 0.9
    assert timers.wait(None) == pytest.approx(0.1)
    assert called == []
    clock.now += 0.1
    assert timers.wait(None) == 0
    assert called == ["a", "b"]
    clock.now += 5
    # What a late one brings about is to be seen before anything is waited for.
    assert timers.wait(None) == 0
    assert called == ["a", "b", "c"]
    assert timers.wait(None) is None
    assert timers.wait(3.0) == 3.0


def test_it_is_called_again_as_it_wishes(timers: Timers, clock: Clock) -> None:
    wishes = [2.0, 0.5, None]
    timers.later(1.0, lambda: wishes.pop(0))
    for left in (2.0, 0.5):
        clock.now += timers.wait(None) or 0
        assert timers.wait(None) == 0
        assert timers.wait(None) == pytest.approx(left)
    clock.now += 0.5
    assert timers.wait(None) == 0
    assert timers.wait(None) is None


def test_what_has_raised_is_called_again(
    timers: Timers, clock: Clock, faults: list[Exception]
) -> None:
    """At once where memory failed, which goes through; else later, and others are not held up."""
    errors: list[Exception] = [MemoryError(), ValueError("wrong")]
    called: list[str] = []

    def fail() -> None:
        called.append("fails")
        if errors:
            raise errors.pop(0)

    timers.later(1.0, fail)
    timers.later(1.0, lambda: called.append("other"))
    clock.now += 1
    with pytest.raises(MemoryError):
        timers.wait(None)
    assert called == ["fails"]
    assert timers.wait(None) == 0
    assert called == ["fails", "fails", "other"]
    assert [str(one) for one in faults] == ["wrong"]
    assert timers.wait(None) == AFTER_A_FAULT
    clock.now += AFTER_A_FAULT
    assert timers.wait(None) == 0
    assert called[-1] == "fails"
    assert timers.wait(None) is None


def test_many_timers_leave_events_their_turn(timers: Timers, clock: Clock) -> None:
    called = []

    def take_time() -> None:
        called.append(clock.now)
        clock.now += LONGEST

    for _ in range(6):
        timers.later(1.0, take_time)
    clock.now += 1
    turns = 0
    while timers.wait(None) == 0:
        turns += 1
    assert (len(called), turns) == (6, 3)


class Busy:
    """A watcher that always has something left."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self.count = 0

    def ready(self, _mask: int) -> None:
        self.resume()

    def resume(self) -> None:
        self.count += 1
        self._poller.again(self)

    def abandon(self) -> None:
        raise AssertionError("it was abandoned")

    def stop(self) -> bool:
        return False


@pytest.mark.parametrize("what", ["events", "something left", "nothing"])
def test_no_timer_waits_for_anything_else(clock: Clock, faults: list[Exception], what: str) -> None:
    """Whatever there is to do meanwhile: it is called in the very turn that it is due in."""
    poller = Poller(faults.append, clock)
    one, other = socket.socketpair()
    other.send(b"x")
    called: list[float] = []
    poller.timers.later(1.0, lambda: called.append(clock.now))
    if what == "events":
        poller.attend(one.fileno(), lambda: None)
    elif what == "something left":
        poller.again(Busy(poller))
    for _ in range(3):
        poller.select(0)
    assert called == []
    clock.now += 1
    poller.select()
    assert called == [101.0]
    poller.close()
    one.close()
    other.close()
    assert faults == []


def test_what_a_timer_brings_about_is_not_waited_for(faults: list[Exception]) -> None:
    """By the real clock: it wakes the poller, and what it leaves is done without another wait."""
    poller = Poller(faults.append)
    busy = Busy(poller)
    poller.timers.later(0.001, lambda: poller.again(busy))
    turns = 0
    while not busy.count:
        poller.select()
        turns += 1
    assert turns <= 3
    poller.close()
