"""Whose sockets are how many."""

import os
import pathlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.dataplane import holdings
from sniproxy.dataplane.holdings import Holdings, listener


def test_listeners_are_told_apart_by_process_and_path(tmp_path: pathlib.Path) -> None:
    names = []
    for path in ("one", "two"):
        with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as stream:
            bound.bind(str(tmp_path / path))
            bound.listen()
            stream.connect(str(tmp_path / path))
            names.append(listener(stream))
    assert names == [f"{os.getpid()} {str(tmp_path / path)!r}" for path in ("one", "two")]


@pytest.fixture
def sockets() -> Iterator[list[socket.SocketType]]:
    made = [socket.socket(socket.AF_UNIX) for _ in range(30)]
    yield list(made)
    for one in made:
        one.close()


def by_number(one: socket.SocketType) -> tuple[bool, float]:
    return False, one.fileno()


def counted(**held: list[socket.SocketType]) -> Holdings:
    made = Holdings()
    for whose, sockets in held.items():
        for one in sockets:
            made.put(whose, one)
    made.compare()
    return made


def test_who_has_the_most(sockets: list[socket.SocketType]) -> None:
    made = counted(a=sockets[:3], b=sockets[3:8], c=sockets[8:9])
    assert len(made) == 3
    assert made.greatest() == (5, "b")
    assert [made.count(whose) for whose in "abcd"] == [3, 5, 1, 0]
    assert made.count("a", sockets[0]) == 2
    assert made.count("a", sockets[9]) == 3
    assert counted(a=sockets[:1], b=sockets[1:2]).greatest() == (1, "")
    assert counted().greatest() == (1, "")


def test_the_last_in_order_is_taken(sockets: list[socket.SocketType]) -> None:
    made = counted(a=sockets[:6], b=sockets[6:8])
    taken = [made.take(0, by_number) for _ in range(5)]
    assert taken == [sockets[5], sockets[4], sockets[3], sockets[2], taken[4]]
    assert taken[4] in sockets
    # One has one left, the other two; and then nobody has more than one.
    assert made.take(1, by_number) is None
    assert made.take(0, by_number) is not None
    assert made.take(0, by_number) is None


def test_nothing_is_taken_that_only_changes_places(sockets: list[socket.SocketType]) -> None:
    made = counted(a=sockets[:4])
    assert made.take(3, by_number) is None
    assert made.take(4, by_number) is None
    assert made.take(2, by_number) is sockets[3]


def test_what_is_closed_is_not_taken_nor_counted_for_long(
    sockets: list[socket.SocketType],
) -> None:
    made = counted(a=sockets[:6], b=sockets[6:10])
    for one in sockets[:5]:
        one.close()
    assert made.take(1, by_number) is sockets[9]
    sockets[8].close()
    assert made.take(0, by_number) is sockets[7]
    assert made.take(0, by_number) is None


def test_what_is_added_counts(sockets: list[socket.SocketType]) -> None:
    made = counted(a=sockets[:3], b=sockets[3:5])
    for one in (*sockets[5:8], sockets[3]):
        made.add("b", one)
    assert made.greatest() == (5, "b")
    assert made.take(0, by_number) is sockets[7]


def test_of_many_only_some_are_put_in_order(
    sockets: list[socket.SocketType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "SAMPLE", 16)
    asked: list[socket.SocketType] = []

    def order(one: socket.SocketType) -> tuple[bool, float]:
        asked.append(one)
        return by_number(one)

    made = counted(a=sockets[:30])
    assert made.take(0, order) is sockets[29]
    assert len(asked) == 16
    # The first of them only: the next may well be among those that were not asked.
    assert made.take(0, order) is sockets[28]
    assert len(asked) == 32


@given(st.lists(st.tuples(st.sampled_from(["put", "take", "close", "add"]), st.integers(0, 3))))
def test_agrees_with_counting_anew(steps: list[tuple[str, int]]) -> None:
    """Whatever happens, nobody loses one who would have fewer than the other then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdings, "SAMPLE", 3)
        made, model, everything = Holdings(), [set[socket.SocketType]() for _ in range(4)], []
        try:
            for what, who in steps:
                if what in ("put", "add"):
                    one = socket.SocketType(socket.AF_UNIX)
                    everything.append(one)
                    model[who].add(one)
                    getattr(made, what)(str(who), one)
                    made.compare()
                elif what == "close":
                    continue
                else:
                    most = max(map(len, model))
                    taken = made.take(len(model[who]), by_number)
                    assert (taken is None) == (len(model[who]) + 1 >= most)
                    if taken is not None:
                        (owner,) = [held for held in model if taken in held]
                        assert len(owner) == most
                        owner.discard(taken)
        finally:
            for one in everything:
                one.close()
