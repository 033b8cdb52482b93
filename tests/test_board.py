"""Memory that processes share."""

import time

from sniproxy.process.board import FOREVER, HELD, MOST_BARS, Bar, Board
from tests.processes import in_child


def test_another_process_sees_what_is_written() -> None:
    board = Board()
    place = board.place(3)

    def write() -> None:
        place.take(5, 1 << 39)
        place.begin(1 << 40)
        place.enter(0)
        board.trouble = HELD

    in_child(write)
    assert place.since
    assert place.question == (5, 1 << 39, 1 << 40)
    assert place.owner == 0
    assert board.trouble == HELD
    assert not board.place(2).since


def test_an_owner_is_known_from_when_it_is_entered() -> None:
    place = Board().place(0)
    place.enter(7)
    place.begin(1)
    assert place.owner is None
    place.enter(2**32 - 1)
    assert place.owner == 2**32 - 1
    place.take(0, 9)
    place.done()
    assert not place.since
    assert not place.question[1]


def test_who_is_given_up_is_told() -> None:
    place = Board().place(0)
    assert not place.given_up
    place.give_up()
    place.done()
    assert place.given_up
    place.clear()
    assert not place.given_up


def test_bars_end() -> None:
    board, now = Board(), time.monotonic_ns()
    bars = {1: Bar(1, now, FOREVER), 2: Bar(2, now, now), 3: Bar(3, now, FOREVER, 1)}
    board.bar(bars)
    assert [board.barred(owner) for owner in range(4)] == [None, bars[1], None, bars[3]]
    board.bar({})
    assert board.barred(1) is None


def test_there_is_room_for_so_many_bars() -> None:
    board = Board()
    board.bar({owner: Bar(owner, 0, FOREVER) for owner in range(MOST_BARS + 9)})
    assert board.barred(MOST_BARS - 1)
    assert not board.barred(MOST_BARS)
    assert not board.place(0).since


def test_a_new_warden_begins_with_nothing() -> None:
    board = Board()
    board.bar({1: Bar(1, 0, FOREVER)})
    board.place(0).begin(1)
    assert (board.begin(), board.epoch) == (1, 1)
    assert not board.place(0).since
    assert board.barred(1) is None
