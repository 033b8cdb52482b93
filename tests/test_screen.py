"""The terminal as the watch has it: lines, keys and signals, and its state afterwards."""

import signal
import sys

import pytest

from tests.terminal import terminal

SAYS = """
import sys
from sniproxy.tools.screen import Ended, Screen, is_terminal, size
screen = Screen()
try:
    with screen.shown():
        while True:
            screen.draw(["first", "second " + "x" * 500, *["more"] * 500], 1)
            _, keys = screen.wait(None, 0, 60)
            screen.draw([f"keys {keys!a}", str(screen.size)], 0)
            if "q" in keys:
                break
            if "!" in keys:
                raise RuntimeError("of ours")
            screen.wait(None, 0, 60)
except Ended as end:
    print("ended", end.number, end.well)
print("is a terminal" if is_terminal() else "is none", size())
"""


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("a", "a"),
        ("aZ r", "aZ r"),
        ("\x1b[A\x1b[1;5D\x1bOP\x1b\x7fa", "a"),
        ("\x1b[6~", " "),
        ("\x1b[5~", "b"),
        ("\xe9\x00", "\ufffd\ufffd\x00"),
        ("\x0c", "\x0c"),
    ],
)
def test_keys(typed: str, keys: str) -> None:
    with terminal(sys.executable, "-c", SAYS, columns=60, lines=6) as one:
        one.shows("first", "more")
        one.type(typed)
        one.shows(f"keys {keys!a}")


def test_a_key_in_two_parts_is_one_key() -> None:
    program = """
from sniproxy.tools.screen import Screen
screen = Screen()
with screen.shown():
    told = ""
    while "q" not in told:
        screen.draw([f"keys {told!a}"], 0)
        told += screen.wait(None, 0, 60)[1] + "."
    screen.draw([f"at the end {told!a}"], 0)
    screen.wait(None, 0, 60)
"""
    with terminal(sys.executable, "-c", program) as one:
        one.shows("keys ''")
        one.type("\x1b")
        one.shows("keys '.'")
        one.type("[")
        one.shows("keys '..'")
        one.type("6~q")
        one.shows("at the end '.. q.'")


def test_lines_are_cut_and_none_scrolls_away() -> None:
    with terminal(sys.executable, "-c", SAYS, columns=40, lines=6) as one:
        one.shows("first")
        one.until(lambda: one.lines == ["first", "second " + "x" * 33, *["more"] * 4])
        # In bold, and in no colour.
        assert b"\x1b[1msecond " + b"x" * 33 + b"\x1b[0m" in one.written


def test_a_new_size_is_told() -> None:
    with terminal(sys.executable, "-c", SAYS, columns=60, lines=6) as one:
        one.shows("first")
        one.resize(70, 9)
        one.shows(r"keys '\x0c'", "columns=70, lines=9")


def test_a_terminal_that_does_not_know_its_size() -> None:
    program = SAYS.replace("screen = Screen()", "screen = Screen(); print('begun', screen.size)")
    with terminal(
        "sh", "-c", 'stty rows 0 cols 0; exec "$@"', "sh", sys.executable, "-c", program
    ) as one:
        one.until(lambda: b"begun os.terminal_size(columns=80, lines=24)" in one.written)


def test_it_is_left_as_it_was() -> None:
    with terminal(sys.executable, "-c", SAYS) as one:
        one.shows("first")
        one.until(lambda: one.is_drawn_on)
        one.type("q")
        assert one.ends() == 0
        assert one.is_as_before
        assert b"is a terminal os.terminal_size(columns=100, lines=24)" in one.written


def test_also_by_an_error() -> None:
    with terminal(sys.executable, "-c", SAYS) as one:
        one.shows("first")
        one.type("!")
        assert one.ends() == 1
        assert one.is_as_before
        assert b"RuntimeError: of ours" in one.written.rpartition(b"\x1b[?1049l")[2]


def test_signals_are_told_once_it_is_left() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        with terminal(sys.executable, "-c", SAYS) as one:
            one.shows("first")
            one.process.send_signal(number)
            assert one.ends() == 0
            assert one.is_as_before
            assert f"ended {number} True".encode() in one.written.rpartition(b"\x1b[?1049l")[2]


def test_who_ignores_a_signal_goes_on_ignoring_it() -> None:
    with terminal("sh", "-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable, "-c", SAYS) as one:
        one.shows("first")
        one.process.send_signal(signal.SIGHUP)
        one.type("a")
        one.shows("keys 'a'")


def test_the_end_of_the_keys_is_the_end() -> None:
    program = SAYS.replace("screen = Screen()", "screen = Screen(); import os")
    program = program.replace("_, keys", "os.dup2(os.open('/dev/null', 0), 0); _, keys")
    with terminal(sys.executable, "-c", program) as one:
        assert one.ends() == 0
        assert b"ended 0 False" in one.written


@pytest.mark.parametrize("environment", ["TERM=dumb", "-u TERM"])
def test_what_can_not_be_drawn_on(environment: str) -> None:
    program = "from sniproxy.tools.screen import is_terminal, size; print(is_terminal(), size())"
    with terminal("env", *environment.split(), sys.executable, "-c", program) as one:
        assert one.ends() == 0
        one.shows("False os.terminal_size(columns=100")
    with terminal("sh", "-c", '"$@" | cat', "sh", sys.executable, "-c", program) as one:
        one.ends()
        one.shows("False None")
    with terminal("sh", "-c", '"$@" >&-', "sh", sys.executable, "-c", program) as one:
        one.ends()
        assert b"Traceback" not in one.written
