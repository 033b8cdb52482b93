"""sniproxy-status where no terminal is drawn on: tables, documents, errors, exit statuses."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from sniproxy.tools.look import as_json, as_table, main
from tests.status_stub import HOSTILE, Stub, connection, document, host, ok, paged, stub
from tests.terminal import ROOT, status, terminal

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


@pytest.mark.usefixtures("server")
def test_hosts(path: pathlib.Path) -> None:
    done = run("--socket", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "sniproxy 0.1.0 (plain) on [::]:443, running for 1h 40m\n"
        "10 open, 100 accepted, 0 adopted; 1.0 KiB up, 2.0 KiB down\n"
        "on average 5.6 ms to a hello, - to its backend; 0 log lines dropped\n"
        "7 refused: no_server_name 4, no_such_host 3\n"
        "workers (0 restarts): 0 has 10 open, 25 of 524288 descriptors\n"
        "\n"
        "host          open  accepted   up     down  faults\n"
        "busy.example     5         0  0 B  3.0 MiB       0\n"
        "idle.example     0         0  0 B      0 B       0\n"
    )


@pytest.mark.usefixtures("server")
def test_connections(path: pathlib.Path) -> None:
    done = run("--socket", str(path), "--connections")
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()[6:]
    assert head == "client       host       state     worker    age  idle   up  down"
    clients = [one["client"] for page in PAGES for one in page]
    assert [line.split()[0] for line in lines] == clients
    assert lines[0] == "192.0.2.0:0  a.example  relaying       0  12.3s  0.5s  1 B   2 B"


@pytest.mark.usefixtures("server")
def test_json(path: pathlib.Path) -> None:
    done = run("--socket", str(path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == SAID
    assert done.stdout.count("\n") == 1


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


def test_hostile_names(path: pathlib.Path) -> None:
    clients = [connection(name, name, state=name) for name in HOSTILE]
    with stub(path, paged([clients], hosts=[host(name) for name in HOSTILE])):
        for form in ([], ["--connections"], ["--json"], ["--json", "--connections"]):
            done = run("--socket", str(path), *form)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.isascii()
            assert all(map(str.isprintable, done.stdout.splitlines()))
            if "--json" in form:
                names = [one["host"] for one in json.loads(done.stdout)["hosts"]]
                assert names == list(HOSTILE)


def test_a_document_keeps_what_is_not_known_here(path: pathlib.Path) -> None:
    said = SAID | {"more": {"deep": [1.5, None, True, "\u202e\x7f"]}}
    with stub(path, lambda _: ok(said)):
        assert json.loads(run("--socket", str(path), "--json").stdout) == said


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


def test_errors(path: pathlib.Path) -> None:
    for form in ([], ["--json"], ["--watch", "0.1"]):
        done = run("--socket", str(path), *form)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"sniproxy-status: '{path}': No such file or directory (")
    assert "'/run/sniproxy/status'" in run("--help").stdout.replace("default: ", "'").replace(
        ")", "'"
    )


def test_an_answer_that_breaks_off(path: pathlib.Path, server: Stub) -> None:
    """What was written of a document is not a whole one, and the exit status says so."""
    whole = server.answer
    server.answer = lambda asked: b"" if "after=2" in asked else whole(asked)
    for form in ([], ["--json"]):
        done = run("--socket", str(path), "--connections", *form)
        assert (done.returncode, "192.0.2.1:3" in done.stdout) == (1, True)
        assert done.stderr.endswith("it closes the connection without an answer\n")
    with pytest.raises(ValueError):
        json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--watch", "0"], "argument --watch: '0' is no number from 0.1 to 86400"),
        (["--watch", "nan"], "'nan' is no number"),
        (["--watch", "\x1b"], r"'\x1b' is no number"),
        (["--socket", "localhost:80"], "error: --socket 'localhost:80': expected a path, or"),
        (["--socket", "1.2.3.4:x\x1b"], r"'1.2.3.4:x\x1b': expected"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_usage_errors(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


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
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n"
