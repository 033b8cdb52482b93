"""Refusals by name: few are kept of any number, and those that matter are among them."""

import pathlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.dataplane import refusals
from sniproxy.dataplane.refusals import MOST_NAMES, Refusals, readable
from sniproxy.process.channel import _MAX_MESSAGE, _written
from tests.hello import hello
from tests.plane import Plane, alert

UNKNOWN, DOWN = "no_such_host", "nothing_listens"


def names(made: Refusals) -> str:
    return str(readable({**made.fields()}).get("names", ""))


def test_the_three_most_refused() -> None:
    made = Refusals()
    for name, count in {"d": 1, "a": 2, "c": 4, "b": 4, "e": 1}.items():
        for _ in range(count):
            made.count(UNKNOWN if name in "ab" else DOWN, name)
    for _ in range(9):
        made.count("not_a_handshake_record", "")
    assert names(made) == "c:4,b:4,a:2"
    fields = readable({**made.fields()})
    del fields["names"]
    assert fields == {"count": 21, UNKNOWN: 6, DOWN: 6, "not_a_handshake_record": 9}
    made.clear()
    assert made.fields() == {}


def test_where_no_name_was_read_there_is_none() -> None:
    made = Refusals()
    made.count("no_server_name", "")
    assert readable({**made.fields()}) == {"count": 1, "no_server_name": 1}


@given(st.lists(st.integers(0, 30), max_size=400), st.integers(1, 8))
def test_what_is_counted_of_a_name(asked: list[int], most: int) -> None:
    """At most what there was, and less by no more than its share of all: Misra and Gries."""
    made = Refusals()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusals, "MOST_NAMES", most)
        for number in asked:
            made.count(UNKNOWN, str(number))
    fields = made.fields()
    for number, count in Counter(asked).items():
        found = fields.get(f"name:{number}", 0)
        assert count - len(asked) / (most + 1) <= found <= count
    assert sum(":" in field for field in fields) <= most


def test_made_up_names_hide_nobody() -> None:
    """Ten thousand that come once each: neither one that comes more often than a hundredth of them,
    nor a host that has an entry, however rarely it is asked for."""
    made = Refusals()
    for number in range(10_000):
        made.count(UNKNOWN, f"{number}.made.up")
        if number % 50 == 0:
            made.count(UNKNOWN, "steady.example")
        if number % 5000 == 0:
            made.count(DOWN, "down.example")
    fields = made.fields()
    assert 99 <= fields["name:steady.example"] <= 200
    assert fields["host:down.example"] == 2
    assert names(made).startswith("steady.example:")
    assert "down.example:2" in names(made)


def test_all_names_fit_in_a_message() -> None:
    """Of the greatest length, and with all the reasons that there are, and more."""
    made = Refusals()
    for number in range(2 * MOST_NAMES):
        for reason in (UNKNOWN, DOWN):
            made.count(reason, f"{number:0254}")
    for number in range(100):
        made.count(f"{number:040}", "")
    assert sum(":" in field for field in made.fields()) <= 2 * MOST_NAMES
    made.clear()
    for number in range(MOST_NAMES):
        for reason in (UNKNOWN, DOWN):
            made.count(reason, f"{number:0254}")
    for number in range(100):
        made.count(f"{number:040}", "")
    assert sum(":" in field for field in made.fields()) == 2 * MOST_NAMES
    assert len(_written("refused", {**made.fields()})) < _MAX_MESSAGE


def test_names_of_the_data_plane(plane: Plane) -> None:
    """Host names are told, and nothing else that a client may have sent in their place."""
    plane.backend("a.example")
    pathlib.Path("down.example").mkdir()
    for name, count in (("no.example", 2), ("DOWN.example.", 3), ("-x,y:1", 4), ("", 5)):
        for _ in range(count):
            assert plane.read(plane.client(hello(name)), 99) == alert(112)
    plane.read(plane.client(b"GET"), 99)
    plane.clock.advance(61)
    ((event, fields),) = plane.reports
    assert event == "refused"
    told = readable({key: value for key, value in fields.items() if isinstance(value, int)})
    assert told["names"] == "down.example:3,no.example:2"
    assert told["count"] == 15
