"""The document is JSON of the schema, whatever it is about."""

import json
import pathlib

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sniproxy.dataplane.listing import Seen
from sniproxy.status.document import connection, document, quoted
from sniproxy.status.overview import Answered, Process
from tests.seen import Shown, whole

REFERENCE = pathlib.Path(__file__).parents[1] / "docs" / "reference"
SCHEMA = json.loads((REFERENCE / "status.schema.json").read_text())
ROW = connection(0, Seen("[2001:db8::1]:7", "a.example", "relaying", 1.5, None, 3, 4))


class Answering(Shown):
    """All of whose workers answer."""

    def processes(self) -> list[Process]:
        return [one._replace(answered=True) for one in super().processes()]


@given(st.text())
@example("\udcff and \ud800")
def test_any_text_is_a_string(text: str) -> None:
    assert json.loads(quoted(text)) == text
    assert quoted(text).isascii()


def test_it_keeps_to_the_schema() -> None:
    said = json.loads(whole(document(Shown(), 1001.0, 0, (0, 0))))
    jsonschema.validate(said, SCHEMA)
    assert said["hosts"][-1] == {
        "host": "a.example",
        "open": 0,
        "connections": 12,
        "bytes_up": 300,
        "bytes_down": 0,
        "backend_faults": 0,
    }
    assert [one["answered"] for one in said["workers"]] == [True, False]


@pytest.mark.parametrize(
    ("most", "after", "rows", "following"),
    [(1, (0, 0), 1, "0.9"), (2, (0, 0), 2, "1.0"), (9, (0, 9), 2, None), (9, (1, 0), 1, None)],
)
def test_pages(most: int, after: tuple[int, int], rows: int, following: str | None) -> None:
    pages = {
        (0, 0): Answered(ROW, 1, 9),
        (0, 9): Answered(ROW, 1, -1),
        (1, 0): Answered(ROW, 1, -1),
    }
    said = json.loads(whole(document(Answering(), 1001.0, most, after), {**pages}))
    jsonschema.validate(said, SCHEMA)
    assert len(said["open_connections"]) == rows
    assert said["next"] == following


def test_who_does_not_answer_is_left_out() -> None:
    pages = {(0, 0): None, (1, 0): Answered(ROW, 1, -1)}
    said = json.loads(whole(document(Answering(), 1001.0, 9, (0, 0)), pages))
    assert [one["client"] for one in said["open_connections"]] == ["[2001:db8::1]:7"]


def test_who_has_not_looked_in_time_is_not_asked_again() -> None:
    said = json.loads(whole(document(Shown(), 1001.0, 9, (0, 0)), {(0, 0): Answered(ROW, 1, -1)}))
    assert len(said["open_connections"]) == 1
