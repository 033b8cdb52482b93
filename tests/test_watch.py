"""sniproxy-status --watch in a terminal of its own: what it shows, and how it leaves it behind."""

import contextlib
import itertools
import os
import pathlib
import platform
import re
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.processes import NUMBERS
from tests.status_stub import HOSTILE, Stub, connection, document, host, ok, paged, stub
from tests.terminal import OURS, Terminal, status, terminal

HOSTS = (
    host("busy.example", open=9, connections=50, bytes_up=10, bytes_down=1 << 20),
    host("idle.example", open=0, connections=90, bytes_up=3000, bytes_down=0),
    host("some.example", open=4, connections=70, bytes_up=200, bytes_down=5, backend_faults=7),
)

LONG = "3600"
"""Seconds until it asks again by itself: what changes before has another reason."""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "status"


def growing(*hosts: dict[str, Any]) -> Callable[[str], bytes]:
    """Answer with a second, a connection and 1,024 bytes down more each time."""
    rounds = itertools.count()

    def answer(_: str) -> bytes:
        turn = next(rounds)
        later = [
            one | {"connections": one["connections"] + turn, "bytes_down": turn << 10}
            for one in hosts
        ]
        return ok(document(*later, time=1764216000.0 + turn, bytes_down=turn << 11))

    return answer


@contextlib.contextmanager
def watching(
    path: pathlib.Path, *arguments: str, seconds: str = "0.1", **size: int
) -> Iterator[Terminal]:
    """Have a watch that has drawn its first table."""
    command = status("--socket", str(path), "--watch", seconds, *arguments)
    with terminal(*command, **size) as shown:
        shown.shows("q quit", "sniproxy 0.1.0")
        yield shown


def order(shown: Terminal) -> list[str]:
    """Name the hosts or clients of the table from above."""
    return re.findall(r"^(\S+\.example|192\S+)", shown.text, re.MULTILINE)


def test_it_is_redrawn_in_place(path: pathlib.Path) -> None:
    with stub(path, growing(*HOSTS)) as server, watching(path) as shown:
        before = len(server.requests)
        shown.until(lambda: len(server.requests) > before + 3)
        shown.shows("1 to 3 of 3 hosts, sorted by open", "1.0 KiB  ", "(2.0 KiB/s)")
        (line,) = (line for line in shown.lines if line.startswith("busy.example"))
        # Of a second each: connections, bytes up and down.
        assert re.search(r" 9 +\d+ +1\.0 +0 B +1\.0 KiB ", line), line
        assert shown.is_drawn_on
        # Nothing is cleared between, so that nothing flickers, and nothing is coloured.
        assert shown.written.count(b"\x1b[2J") == 1
        assert set(re.findall(rb"\x1b\[[\d;]*[A-Za-z]", shown.written)) == {
            b"\x1b[2J", b"\x1b[H", b"\x1b[1m", b"\x1b[0m",
        }  # fmt: skip
        shown.type("q")
        assert shown.ends() == 0
        assert shown.is_as_before
        assert "busy" not in shown.written.decode().rpartition("\x1b[?1049l")[2]


def test_keys_sort(path: pathlib.Path) -> None:
    busy, idle, some = (one["host"] for one in HOSTS)
    with stub(path, lambda _: ok(document(*HOSTS))), watching(path, seconds=LONG) as shown:
        shown.until(lambda: order(shown) == [busy, some, idle])
        for keys, expected in (
            ("n", [busy, idle, some]),
            ("r", [some, idle, busy]),
            ("a", [idle, some, busy]),
            ("u", [idle, some, busy]),
            ("d", [busy, some, idle]),
            ("dr", [idle, some, busy]),
            ("f", [some, busy, idle]),
            # Keys that mean nothing, and those that are no characters: up, left, F5, a torn one.
            ("\x1b[A\x1b[D\x1bOD\x1b[15~zZ\x00\xff\x1b", [some, busy, idle]),
            ("[Do", [busy, some, idle]),
        ):
            shown.type(keys)
            shown.until(lambda expected=expected: order(shown) == expected)


def test_keys_choose_hosts_or_connections(path: pathlib.Path) -> None:
    clients = [
        [connection(f"192.0.2.1:{n}", age=n, idle=None) for n in range(5)],
        [connection(f"192.0.2.2:{n}", age=10 - n, state="hello", name="") for n in range(5)],
    ]
    with (
        stub(path, paged(clients)) as server,
        watching(path, "--connections", seconds=LONG) as shown,
    ):
        # Of both pages the oldest first.
        shown.shows("1 to 10 of 10 connections, sorted by age")
        ages = [float(age) for age in re.findall(r" ([\d.]+)s +(?:-|0\.5s)", shown.text)]
        assert ages == sorted(ages, reverse=True)
        assert len(ages) == 10
        assert re.search(r"192.0.2.2:4 +- +hello +0 +6.0s +0.5s +1 B +2 B", shown.text)
        shown.type("l")
        shown.until(lambda: order(shown)[0] == "192.0.2.1:0")
        shown.type("h")
        shown.shows("none of 0 hosts, sorted by open")
        # It is drawn before it is asked.
        shown.until(lambda: "connections" not in server.requests[-1])
        shown.type("c")
        shown.shows("10 of 10 connections, sorted by client")


def test_keys_turn_pages(path: pathlib.Path) -> None:
    pages = [[connection(f"192.0.2.{p}:{n}", age=1000 - 100 * p - n) for n in range(100)]
             for p in range(3)]  # fmt: skip
    with (
        stub(path, paged(pages)) as server,
        watching(path, "--connections", seconds=LONG, lines=18) as shown,
    ):
        shown.shows("1 to 10 of 300 connections")
        assert order(shown) == [f"192.0.2.0:{n}" for n in range(10)]
        shown.type(" \x1b[6~")
        shown.shows("21 to 30 of 300")
        shown.until(lambda: order(shown) == [f"192.0.2.0:{n}" for n in range(20, 30)])
        shown.type("\x1b[5~")
        shown.shows("11 to 20 of 300")
        shown.type("bbbb")
        shown.shows("1 to 10 of 300")
        shown.type(" " * 50)
        shown.shows("291 to 300 of 300")
        shown.until(lambda: order(shown) == [f"192.0.2.2:{n}" for n in range(90, 100)])
        assert len(server.requests) > 3


@pytest.mark.parametrize(
    ("columns", "lines"), [(200, 50), (60, 12), (40, 9), (10, 5), (1, 1), (3, 2)]
)
def test_it_takes_any_size(path: pathlib.Path, columns: int, lines: int) -> None:
    hosts = [host(f"{'long' * 10}-{n:02}.example", open=90 - n) for n in range(90)]
    with stub(path, lambda _: ok(document(*hosts))), watching(path) as shown:
        shown.resize(columns, lines)  # which is a signal
        if columns == 200:
            shown.shows(f"{'long' * 10}-00.example", f"{'long' * 10}-41.example   ", "f faults")
        elif columns == 60:
            # Of the columns of text, as much as there is room for; numbers keep theirs.
            shown.until(lambda: re.search(r"^longlong.*… +90 +0 ", shown.text, re.MULTILINE))
        keys = "q quit  h hosts"[: columns - 1]
        shown.until(lambda: shown.lines[-1].startswith(keys))
        shown.resize(100, 24)
        shown.shows("f", "q quit  h hosts", "sorted by open")
        shown.type("q")
        assert shown.ends() == 0
        assert shown.is_as_before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_end_it(path: pathlib.Path, number: signal.Signals) -> None:
    with stub(path, lambda _: ok(document(*HOSTS))), watching(path) as shown:
        if number is signal.SIGINT:
            shown.type("\x03")
        else:
            shown.process.send_signal(number)
        assert shown.ends() == -number
        assert shown.is_as_before
        assert b"Traceback" not in shown.written


def test_a_signal_is_heard_where_output_is_held(path: pathlib.Path) -> None:
    with stub(path, lambda _: ok(document(*HOSTS))), watching(path) as shown:
        shown.type("\x13")  # Ctrl-S
        call = pathlib.Path(f"/proc/{shown.process.pid}/syscall")
        number = f"{NUMBERS['write'][platform.machine()]} "
        shown.until(lambda: call.read_text().startswith(number))
        shown.process.send_signal(signal.SIGTERM)
        assert shown.ends() == -signal.SIGTERM
        assert shown.is_as_before


def test_an_error_of_ours_leaves_no_trace(path: pathlib.Path) -> None:
    before = (
        "from sniproxy.tools import watch\n"
        "def fails(*_): raise ZeroDivisionError\n"
        "watch.host_rows = fails"
    )
    with stub(path, lambda _: ok(document(*HOSTS))):
        command = status("--socket", str(path), "--watch", before=before)
        with terminal(*command) as shown:
            assert shown.ends() == 1
            assert b"ZeroDivisionError" in shown.written.rpartition(b"\x1b[?1049l")[2]
            assert shown.is_as_before


def test_it_can_be_stopped_and_goes_on(path: pathlib.Path) -> None:
    with (
        stub(path, lambda _: ok(document(*HOSTS))),
        terminal("bash", "--norc", "--noprofile", "-i") as shown,
    ):
        shown.shows("$")
        words = shlex.join(status("--socket", str(path), "--watch", "0.1"))
        script = path.parent / "script"
        script.write_text(words)
        shown.type(f"source {script}\n")
        shown.shows("sorted by open", "busy.example")
        shown.until(lambda: shown.is_drawn_on)
        shown.type("\x1a")  # Ctrl-Z
        shown.until(lambda: b"Stopped" in shown.written)
        assert not shown.is_drawn_on
        shown.type("echo $((6*7))\n")
        shown.until(lambda: b"42" in shown.written)
        shown.type("fg\n")
        shown.until(lambda: shown.is_drawn_on)
        shown.shows("sorted by open", "busy.example")
        shown.type("n")  # keys come one by one again
        shown.shows("sorted by host")
        shown.type("q")
        shown.until(lambda: not shown.is_drawn_on)
        shown.type("exit\n")
        assert shown.ends() == 0


def test_a_stop_that_nobody_asks_first(path: pathlib.Path) -> None:
    """SIGSTOP can't be heard; whoever had the terminal meanwhile may have changed it."""
    with stub(path, lambda _: ok(document(*HOSTS))), watching(path) as shown:
        entered = shown.written.count(b"\x1b[?1049h")
        shown.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, shown.process.pid, os.WSTOPPED)
        shown.process.send_signal(signal.SIGCONT)
        shown.until(lambda: shown.written.count(b"\x1b[?1049h") == entered + 1)
        shown.shows("busy.example")
        shown.type("q")
        assert shown.ends() == 0


def test_keys_are_heard_while_nobody_answers(path: pathlib.Path) -> None:
    words = status("--socket", str(path), "--watch")
    with stub(path, lambda _: None) as server, terminal(*words) as shown:
        shown.shows("asking /")
        shown.until(lambda: server.requests)
        shown.type("q")
        assert shown.ends() == 0
        assert shown.is_as_before


def test_no_first_answer_is_the_end(path: pathlib.Path) -> None:
    with terminal(*status("--socket", str(path), "--watch")) as shown:
        assert shown.ends() == 1
        assert b"there is no such socket" in shown.written.rpartition(b"\x1b[?1049l")[2]
        assert shown.is_as_before


def test_what_was_shown_stays_while_nobody_answers(path: pathlib.Path) -> None:
    said = ok(document(*HOSTS))
    with stub(path, lambda _: said) as server, watching(path, columns=200) as shown:
        server.answer = lambda _: b"HTTP/1.0 503 Service Unavailable\r\n\r\n\x1b[31mbusy\n"
        shown.shows("it answers 503 Service Unavailable: \\x1b[31mbusy", "busy.example")
        server.answer = lambda _: ok(document(host("next.example")))
        shown.shows("next.example", "q quit")


def test_hostile_names(path: pathlib.Path) -> None:
    said = document(
        *map(host, HOSTILE),
        listen=list(HOSTILE),
        build={"version": HOSTILE[0], "flavour": HOSTILE[1]},
        connections={"accepted": 1, "adopted": 0, "open": 1, "refused": dict.fromkeys(HOSTILE, 1)},
    )
    clients = [connection(name, name, state=name) for name in HOSTILE]

    def answer(path: str) -> bytes:
        more = {"open_connections": clients, "next": None} if "connections" in path else {}
        return ok(said | more)

    with (
        stub(path, answer),
        terminal(*status("--socket", str(path), "--watch", "0.1")) as shown,
    ):
        shown.shows("sorted by open", "\\x1b[31mred", "right\\u202eleft")
        shown.type("c")
        shown.shows("6 of 6 connections", "\\x1b[31mred", "nnnn")
        shown.type("q")
        assert shown.ends() == 0
        text = OURS.sub(b"", shown.written).decode()
        assert all(" " <= one <= "~" or one == "…" for one in text), text


def test_without_keys(path: pathlib.Path) -> None:
    """Standard input is no terminal: it is shown all the same, and left alone."""
    with stub(path, lambda _: ok(document(*HOSTS))):
        words = status("--socket", str(path), "--watch", "0.1")
        with terminal("sh", "-c", 'exec "$@" </dev/null', "sh", *words) as shown:
            shown.shows("busy.example")
            shown.type("q")
            shown.shows("sorted by open")
            shown.process.send_signal(signal.SIGTERM)
            assert shown.ends() == -signal.SIGTERM
            assert shown.is_as_before


def test_a_queue_that_is_full_is_waited_for(path: pathlib.Path) -> None:
    """And keys are heard meanwhile."""
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as others:
        listening.bind(str(path))
        listening.listen(0)
        for _ in range(2):
            other = others.enter_context(socket.socket(socket.AF_UNIX))
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                other.connect(str(path))
        with terminal(*status("--socket", str(path), "--watch", "0.1")) as shown:
            shown.shows("asking")
            others.close()
            server = Stub(listening, lambda _: ok(document(*HOSTS)))
            try:
                shown.shows("busy.example")
                shown.type("q")
                assert shown.ends() == 0
            finally:
                server.close()
