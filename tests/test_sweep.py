"""Timers by a clock of the test's own."""

from sniproxy.dataplane.sweep import Countdown, Leaving, Sweep
from tests.clock import Clock


def test_a_sweep_runs_while_it_is_wanted() -> None:
    clock = Clock()
    left = [True, True, False]
    calls: list[float] = []

    def sweep() -> bool:
        calls.append(clock.now)
        return left.pop(0)

    periodic = Sweep(clock.later, 2, sweep)
    clock.advance(10)
    assert (calls, clock.timers) == ([], 0)
    periodic.wake()
    periodic.wake()
    assert clock.timers == 1
    clock.advance(100)
    assert (calls, clock.timers) == ([12, 14, 16], 0)
    left.append(False)
    periodic.wake()
    clock.advance(100)
    assert (calls, clock.timers) == ([12, 14, 16, 112], 0)


def test_a_sweep_may_wake_itself() -> None:
    clock = Clock()
    calls: list[float] = []

    def sweep() -> bool:
        calls.append(clock.now)
        if len(calls) == 1:
            periodic.wake()
        return False

    periodic = Sweep(clock.later, 1, sweep)
    periodic.wake()
    clock.advance(10)
    assert calls == [1, 2]


def test_what_is_started_again_while_it_expires_has_its_time_anew() -> None:
    expired: list[tuple[float, str]] = []

    def expire(item: str) -> None:
        expired.append((now, item))
        if len(expired) == 1:
            countdown.stop(item)
            countdown.start(item, now)

    countdown = Countdown(10, expire)
    countdown.start("a", 0)
    countdown.start("b", 1)
    for now in (10, 11, 19, 20):
        countdown.sweep(now)
    assert expired == [(10, "a"), (11, "b"), (20, "a")]


def test_a_countdown_expires_each_item_once_oldest_first() -> None:
    expired: list[str] = []
    countdown = Countdown(10, expired.append)
    for now, item in ((0, "a"), (1, "b"), (1, "c"), (5, "d")):
        countdown.start(item, now)
    assert (len(countdown), countdown.oldest()) == (4, "a")
    assert countdown.sweep(9.9)
    assert expired == []
    countdown.stop("b")
    countdown.stop("never there")
    assert countdown.sweep(11)
    assert expired == ["a", "c"]
    assert countdown.oldest() == "d"
    assert not countdown.sweep(15)
    assert expired == ["a", "c", "d"]
    assert countdown.oldest() is None
    assert not countdown.sweep(99)


def test_what_expires_may_stop_others() -> None:
    expired: list[str] = []

    def expire(item: str) -> None:
        expired.append(item)
        countdown.stop("b")

    countdown = Countdown(1, expire)
    countdown.start("a", 0)
    countdown.start("b", 0)
    assert not countdown.sweep(2)
    assert expired == ["a"]


class Leaver:
    """Who has taken what the test says, and is gone when he has expired."""

    def __init__(self, leaving: Leaving, patience: float) -> None:
        self.leaving = leaving
        self.number = 0
        self.seconds = patience

    def taken(self) -> int:
        return self.number

    def patience(self) -> float:
        return self.seconds

    def expire(self) -> None:
        self.leaving.stop(self)


def test_who_leaves_may_stand_still_for_his_own_time() -> None:
    clock = Clock()
    leaving = Leaving(clock.later, 10, lambda: clock.now, Leaver.expire)
    short, long = Leaver(leaving, 20), Leaver(leaving, 50)
    leaving.start(short)
    leaving.start(long)
    clock.advance(29)
    assert len(leaving) == 2
    clock.advance(1)
    assert short not in leaving
    assert long in leaving
    clock.advance(30)
    assert len(leaving) == 0
    clock.advance(10)
    assert clock.timers == 0


def test_what_is_taken_renews_the_time_and_to_start_again_does_not() -> None:
    clock = Clock()
    leaving = Leaving(clock.later, 10, lambda: clock.now, Leaver.expire)
    leaver = Leaver(leaving, 20)
    leaving.start(leaver)
    for change in (1, -5, 3, 1):
        leaver.number += change
        clock.advance(20)
        assert leaver in leaving
    leaving.start(leaver)
    clock.advance(20)
    assert leaver not in leaving


def test_a_countdown_of_what_others_began_is_in_order() -> None:
    expired: list[str] = []
    countdown: Countdown[str] = Countdown(10, expired.append)
    countdown.start("now", 100)
    for name, began in (("youngest", 99.0), ("oldest", 95.0), ("middle", 97.0)):
        countdown.start(name, began)
    countdown.start("later", 101)
    assert countdown.oldest() == "oldest"
    assert countdown.sweep(105)
    assert expired == ["oldest"]
    countdown.stop("middle")
    assert countdown.sweep(109)
    assert expired == ["oldest", "youngest"]
    # Once more, after it has been in order again.
    countdown.start("older", 98)
    assert countdown.oldest() == "older"
    assert not countdown.sweep(111)
    assert expired == ["oldest", "youngest", "older", "now", "later"]
