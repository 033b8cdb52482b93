"""Counts in shared memory: bounded, whole, and kept when their process has gone."""

import os

import pytest

from sniproxy.dataplane import counts
from sniproxy.dataplane.counts import (
    ACCEPTED,
    BOUNDS,
    CONNECTIONS,
    HAS_OPEN,
    MOST_OF_ONE,
    MOST_ROWS,
    OPEN,
    OTHERS,
    UP,
    Counts,
    Rows,
    Times,
    totals,
)


def read(rows: Rows, some: int = 100) -> dict[str, list[int]]:
    return {name: numbers for piece in rows.read(some) for name, numbers in piece}


def test_rows_are_seen_by_others() -> None:
    rows = Rows(10, 2, "first")
    if not os.fork():
        rows.row("a.example")[1] += 7
        os._exit(0)
    os.wait()
    assert read(rows) == {"first": [0, 0], "a.example": [0, 7]}


@pytest.mark.parametrize("some", [1, 2, 100])
def test_rows_are_read_in_pieces(some: int) -> None:
    rows = Rows(10, 1, "first")
    for number in range(5):
        rows.row(f"{number}.example")[0] = number
    assert list(read(rows, some).values()) == [[0], [0], [1], [2], [3], [4]]


def test_what_has_no_room_is_counted_together() -> None:
    rows = Rows(3, 1, "first")
    for number in range(5):
        rows.row(f"{number}.example")[0] += 1
    rows.row("1.example")[0] += 1
    assert read(rows) == {"first": [3], "0.example": [1], "1.example": [2]}


def test_long_names_have_their_bound_too() -> None:
    rows = Rows(counts.MOST_ROWS, 1, OTHERS)
    for number in range(counts.MOST_ROWS):
        rows.row(f"{number:0250}.a")[0] += 1
    assert sum(numbers[0] for numbers in read(rows).values()) == MOST_ROWS
    assert rows.first[0] > 1000


def test_who_comes_after_goes_on_with_the_rows() -> None:
    part = Counts()
    if not os.fork():
        part.host("a.example", "a.example")[UP] += 7
        part.numbers[OPEN] = part.host("a.example", "a.example")[HAS_OPEN] = 1
        os._exit(0)
    os.wait()
    part.leave()
    part.rejoin()
    part.host("a.example", "a.example")[UP] += 1
    part.host("b.example", "b.example")[UP] += 1
    assert part.numbers[OPEN] == 0
    assert read(part.hosts) == {
        OTHERS: [0] * 5,
        "a.example": [0, 8, 0, 0, 0],
        "b.example": [0, 1, 0, 0, 0],
    }


def test_one_owner_has_no_more_rows_than_that() -> None:
    part = Counts()
    for number in range(MOST_OF_ONE + 5):
        part.host(f"{number}.example", 54001)[CONNECTIONS] += 1
    part.host("other.example", 54002)[CONNECTIONS] += 1
    part.host("trusted.example", "trusted.example")[CONNECTIONS] += 1
    rows = read(part.hosts)
    assert rows[OTHERS][CONNECTIONS] == 5
    assert rows["other.example"][CONNECTIONS] == rows["trusted.example"][CONNECTIONS] == 1


def test_one_owner_has_no_more_room_for_names_than_for_rows() -> None:
    part = Counts()
    for owner in range(7):
        for number in range(MOST_OF_ONE):
            part.host(f"{number:0240}.{owner}", 54001 + owner)[CONNECTIONS] += 1
    part.host("other.example", 54000)[CONNECTIONS] += 1
    rows = read(part.hosts)
    assert rows["other.example"][CONNECTIONS] == 1
    assert len({name[-1] for name in rows if name.startswith("0")}) == 7


def test_times_are_counted_by_their_bounds() -> None:
    times = Times()
    for seconds in (0.0005, BOUNDS[0], 0.002, 9.0, 11.0):
        times.took(seconds)
    assert times.numbers.tolist()[:2] == [2, 1]
    assert times.numbers.tolist()[len(BOUNDS) - 1 :] == [1, 1, 20_003_500]


def test_where_no_time_is_noted_the_hello_was_there() -> None:
    part = Counts()
    part.arrived(10.0, None, 10.5)
    part.arrived(10.0, 12.0, 12.004)
    assert sum(part.hello.numbers[:-1]) == 1
    assert part.hello.numbers[-1] == 2_000_000
    assert part.backend.numbers[BOUNDS.index(0.5)] == 1
    assert part.backend.numbers[BOUNDS.index(0.005)] == 1


def test_totals_of_several() -> None:
    parts = [Counts(), Counts()]
    for part in parts:
        part.numbers[ACCEPTED] = 3
        part.reasons.row("loop")[0] += 1
        part.host("a.example", "a.example")[UP] += 10
    assert totals(parts) == {
        "open": 0,
        "accepted": 6,
        "refused": 2,
        "bytes_up": 20,
        "bytes_down": 0,
        "refused_loop": 2,
    }
