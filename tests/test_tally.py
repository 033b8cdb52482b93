"""Whose turn it is to accept: who is ahead lets the others have a go, and not for long."""

import copy
import os

from sniproxy.dataplane.tally import LEAD, MOMENTS, MOST_BEHIND, Tally


def workers(count: int) -> list[Tally]:
    """Have as many workers share a tally, as forked processes do."""
    tally = Tally(count)
    joined = [copy.copy(tally) for _ in range(count)]
    for number, one in enumerate(joined):
        one.join(number)
    return joined


def test_who_is_ahead_waits() -> None:
    one, other, _ = workers(3)
    for ours in (one, other):
        ours.count(LEAD - 1)
        assert not ours.ahead()
    one.count(LEAD)
    assert one.ahead()
    assert not other.ahead()


def test_not_for_ever() -> None:
    """Who takes nothing is waited for no more, until it has taken one."""
    one, other = workers(2)
    one.count(LEAD + 1)
    assert [one.ahead() for _ in range(MOMENTS + 3)] == [True] * MOMENTS + [False] * 3
    other.count(1)
    assert one.ahead()


def test_who_takes_nothing_hides_nobody() -> None:
    """One hangs; of the others, who is ahead still waits for who is not."""
    one, other, _ = workers(3)
    one.count(LEAD)
    while one.ahead():
        pass
    other.count(1)
    one.count(LEAD + 1)
    assert one.ahead()


def test_what_was_missed_is_not_owed_for_ever() -> None:
    one, other = workers(2)
    one.count(100_000)
    other.count(1)
    for taken in range(2, MOST_BEHIND - LEAD + 3):
        assert one.ahead()
        other.count(taken)
    assert not one.ahead()


def test_who_comes_later_begins_as_the_busiest() -> None:
    one, other = workers(2)
    one.count(1000)
    other.join(1)
    assert not one.ahead()
    other.count(LEAD)
    assert other.ahead()


def test_it_is_shared_by_those_who_are_forked() -> None:
    tally = Tally(2)
    tally.join(0)
    child = os.fork()
    if not child:
        tally.join(1)
        tally.count(LEAD)
        os._exit(0)
    os.waitpid(child, 0)
    tally.count(2 * LEAD - 1)
    assert not tally.ahead()
    tally.count(2 * LEAD)
    assert tally.ahead()
