"""sniproxy-status where no terminal is drawn on: tables, documents, errors, exit statuses."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sniproxy.tools.look import as_json, as_table, main
from tests.status_stub import Stub, connection, document, host, ok, paged, stub
from tests.terminal import ROOT, status, terminal
from tests.transcript import cases

PAGES = [
    [connection(f"192.0.2.{page}:{n}", "a.example") for n in range(3 + page)] for page in range(3)
]
SAID = document(host("idle.example"), host("busy.example", open=5, bytes_down=3 << 20))


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "status"


@pytest.fixture
def server(path: pathlib.Path) -> Iterator[Stub]:
    with stub(path, paged(PAGES, hosts=SAID["hosts"])) as serving:
        yield serving


def run(*arguments: str, script: str = '"$@"') -> subprocess.CompletedProcess[str]:
    """Run it within a line of shell, where ``"$@"`` is the command."""
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", *status(*arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("pages", [PAGES, [[]], [[], PAGES[0], [], PAGES[1]]])
def test_json_of_all_connections_is_one_document(
    path: pathlib.Path, pages: list[list[dict[str, Any]]]
) -> None:
    with stub(path, paged(pages)):
        done = run("--socket", str(path), "--json", "--connections")
    connections = list(itertools.chain(*pages))
    expected = document() | {"open_connections": connections, "next": None, "hosts": []}
    assert (done.returncode, json.loads(done.stdout)) == (0, expected)
    assert done.stdout.count("\n") == 1


class Counted(dict[str, Any]):
    """A page whose life can be followed."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("form", [as_json, as_table])
def test_pages_are_not_collected(form: Any) -> None:
    alive: weakref.WeakSet[Counted] = weakref.WeakSet()

    def pages() -> Iterator[dict[str, Any]]:
        for number in range(50):
            page = Counted(document(), open_connections=[connection(str(number))], next="1")
            alive.add(page)
            yield page
            del page
            assert len(alive) <= 3

    given = pages()
    first = next(given)
    options = {} if form is as_json else {"before": None, "watched": False}
    told = "".join(form(given, first, **options))
    assert told.count("relaying") == 50


def test_a_deep_document_is_written_or_refused(
    path: pathlib.Path, server: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    start = json.dumps(SAID)[:-1].encode() + b', "a": '
    statuses = []
    for depth in range(700, 1000):
        server.answer = lambda _, depth=depth: ok(start + b"[" * depth + b"]" * depth + b"}")
        statuses.append(main(["--socket", str(path), "--json"]))
        told, complaint = capsys.readouterr()
        assert (bool(told), "too deeply" in complaint) == ((True, False), (False, True))[
            statuses[-1]
        ]
    assert statuses == sorted(statuses)
    assert set(statuses) == {0, 1}


def test_a_watch_without_a_terminal_writes_tables_below_each_other(
    path: pathlib.Path, server: Stub
) -> None:
    rounds = itertools.count()

    def answer(_: str) -> bytes:
        turn = next(rounds)
        if turn == 2:
            return b"HTTP/1.0 503 Busy\r\n\r\n"  # once it has begun it goes on
        return ok(SAID | {"time": 1764216000.0 + turn, "bytes_up": turn * 1024})

    server.answer = answer
    done = run("--socket", str(path), "--watch", "0.1", script='"$@" | head -n 29')
    tables = done.stdout.split("\n\n")
    assert "\x1b" not in done.stdout
    assert [table.splitlines()[1] for table in tables[::2]] == [
        "10 open, 100 accepted, 0 adopted; 0 B up, 2.0 KiB down",
        "10 open, 100 accepted (0.0/s), 0 adopted; 1.0 KiB up (1.0 KiB/s), 2.0 KiB down (0 B/s)",
        "10 open, 100 accepted (0.0/s), 0 adopted; 3.0 KiB up (1.0 KiB/s), 2.0 KiB down (0 B/s)",
    ]
    assert all("new/s" in table for table in tables[1::2])
    assert done.stderr == f"sniproxy-status: '{path}': it answers 503 Busy\n"


def test_a_watch_of_documents_is_a_line_each(path: pathlib.Path, server: Stub) -> None:
    words = ("--socket", str(path), "--json", "--connections", "--watch", "0.1")
    done = run(*words, script='"$@" | head -n 3')
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 3
    # Also in a terminal.
    server.answer = lambda _: ok(SAID)
    with terminal(*status("--socket", str(path), "--json", "--watch", "0.1")) as shown:
        shown.until(lambda: shown.written.count(b"\n") == 3)
        assert b"\x1b" not in shown.written


@pytest.mark.usefixtures("server")
def test_a_terminal_that_is_not_watched(path: pathlib.Path) -> None:
    """No control sequences, and lines that fit."""
    words = status("--socket", str(path), "--connections")
    with terminal(*words, columns=50, lines=40) as shown:
        assert shown.ends() == 0
        assert b"\x1b" not in shown.written
        lines = shown.written.decode().splitlines()
        assert len(lines) == 19
        assert max(map(len, lines)) == 50
        assert lines[0] == "sniproxy 0.1.0 (plain) on [::]:443, running for 1…"
    with terminal(*words, columns=300, lines=40) as shown:
        assert shown.ends() == 0
        assert shown.lines[0].endswith("running for 1h 40m")


@pytest.mark.usefixtures("server")
def test_a_dumb_terminal_is_watched_without_control_sequences(path: pathlib.Path) -> None:
    words = status(
        "--socket", str(path), "--watch", "0.1", before="import os; os.environ['TERM'] = 'dumb'"
    )
    with terminal(*words) as shown:
        shown.until(lambda: shown.written.count(b"busy.example") == 2)
        assert b"\x1b" not in shown.written


def test_nobody_reads(path: pathlib.Path, server: Stub) -> None:
    pages = [[connection(f"192.0.2.{n}:1") for n in range(1000)] for _ in range(20)]
    server.answer = paged(pages, hosts=SAID["hosts"])
    for form in ([], ["--connections"], ["--json"], ["--json", "--connections"]):
        words = ("--socket", str(path), *form)
        full = run(*words, script='"$@" >/dev/full')
        told = "can't write to standard output: No space left on device\n"
        assert (full.returncode, full.stderr) == (1, told)
        unread = run(*words, script='{ "$@"; echo $? >&2; } | true')
        assert unread.stderr == "1\n"
        assert run(*words, script='"$@" >&-').returncode == 1
    done = run("--socket", str(path), "--connections", script='"$@" | head -n 1')
    assert done.stderr == ""
    assert done.stdout.startswith("sniproxy 0.1.0")


def test_the_proxy_does_not_load_it() -> None:
    program = (
        "import sys, sniproxy.process.service; "
        "print([one for one in ('json', 'termios', 'sniproxy.tools.look') if one in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],  # and what a .pth file has Python load is not ours
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("case", cases("sniproxy-status"))
def test_transcript(case: str, play: Callable[[str], None]) -> None:
    play(case)
