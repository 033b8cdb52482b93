"""What counts as a statement, and what is wrong with what does not."""

import copy
import json
import pathlib
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.tools.statement import FormError, statement
from tests.status_stub import HOSTILE, connection, document, host

WHOLE = document(host("a.example"), extra={"nested": [1]}) | {
    "open_connections": [connection("192.0.2.1:1"), connection("", "", age=None, idle=None)],
    "next": "0.57",
}

REFERENCE = pathlib.Path(__file__).parents[1] / "docs" / "reference"
SCHEMA = json.loads((REFERENCE / "status.schema.json").read_text())


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("connections", [False, True])
def test_a_statement_is_given_as_it_is(connections: bool) -> None:
    assert statement(text(WHOLE), connections=connections) == WHOLE


@pytest.mark.parametrize("field", ["hosts", "open_connections"])
def test_what_tests_say_is_a_statement_by_the_schema(field: str) -> None:
    said = copy.deepcopy(WHOLE)
    del said["extra"]
    jsonschema.validate(said, SCHEMA)
    del said[field][0]["host"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(said, SCHEMA)


def test_any_name_is_a_name() -> None:
    said = document(*map(host, HOSTILE))
    assert statement(text(said), connections=False) == said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "Expecting value"),
        (b"<html>", "Expecting value"),
        (b"[]", "it is no object"),
        (b"null", "it is no object"),
        (b'{"version": "\xe5\xad\x97"}', r"it has version \u5b57, and"),
        (b"{}", "it has version None, and 1 is known here"),
        (b'{"version": 2}', "it has version 2, and 1 is known here"),
        (b'{"version": "\\u001b[31m"}', r"it has version \x1b[31m, and"),
        (b'{"version": 1}', "it has no time"),
        (b'{"version": 1, "a": "\x1b"}', "Invalid control character"),
        (b'{"version": 1, "a": "\xff"}', "can't decode byte 0xff"),
        (b'{"version": 1, "a": NaN}', "NaN is no number"),
        (b'{"version": 1, "a": -Infinity}', "-Infinity is no number"),
        (b'{"version": 1, "a": 1e999}', "1e999 is no number"),
        (b'{"version": 1, "a": ' + b"9" * 9999 + b"}", "Exceeds the limit"),
        (b"[" * 100_000, "nested too deeply"),
        (text(WHOLE)[:-1], "Expecting"),
    ],
)
def test_no_statement(said: bytes, words: str) -> None:
    with pytest.raises(FormError) as caught:
        statement(said, connections=False)
    assert words in str(caught.value)
    assert len(str(caught.value)) <= 200
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["time"], "now", "time is no number"),
        (["time"], True, "time is no number"),
        (["time"], 2**64, "time is no number"),
        (["listen"], {}, "listen is no array"),
        (["listen", 0], None, "one of listen is no text"),
        (["build", "version"], 1, "version is no text"),
        (["workers", 0], [], "one of workers is no object"),
        (["workers", 0, "answered"], 1, "answered is no truth value"),
        (["connections", "refused", "no_such_host"], "3", "no_such_host is no number"),
        (["connections", "refused"], {"\x1b": "3"}, r"\x1b is no number"),
        (["hosts", 0, "host"], None, "host is no text"),
        (["open_connections", 0, "age"], "1", "age is no number"),
        (["open_connections", 0, "client"], None, "client is no text"),
        (["next"], 5, "next is no text"),
    ],
)
def test_a_wrong_field_is_named(path: list[Any], value: Any, words: str) -> None:
    said = copy.deepcopy(WHOLE)
    place: Any = said
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(FormError, match=words.replace("\\", "\\\\")):
        statement(text(said), connections=True)
    if isinstance(place, dict) and path[-1] != "no_such_host":
        del place[path[-1]]
        with pytest.raises(FormError, match=f"has no {path[-1]}"):
            statement(text(said), connections=True)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | ANYTHING.map(text))
def test_garbage_is_no_statement(said: bytes) -> None:
    with pytest.raises(FormError):
        statement(said, connections=True)


@given(st.sampled_from(sorted(WHOLE)), ANYTHING)
def test_a_garbled_field_is_taken_or_refused(field: str, value: Any) -> None:
    try:
        statement(text(WHOLE | {field: value}), connections=True)
    except FormError:
        pass
