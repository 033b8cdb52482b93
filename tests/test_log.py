"""The log can neither raise, nor block, nor kill."""

import errno
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.dataplane.sweep import Sweep
from sniproxy.log.log import Level, Log, field, is_journal
from sniproxy.log.repeats import PERIOD
from sniproxy.log.sinks import MAX_LINE, FileSink, SocketSink, sink_of
from tests.clock import Clock


def test_fields_are_one_word() -> None:
    assert field("a.example:443") == "a.example:443"
    assert field('say "hi"\n\x1b') == '"say \\"hi\\"\\n\\u001b"'
    assert field("") == '""'
    assert field("é=1") == '"\\u00e9=1"'


def test_form_and_levels(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        log = Log(sink_of(file.fileno()), Level.ERROR, clock=lambda: 86400.5)
        log.info("start")
        log.warning("backend_fault", host="a.example")
        log.reply("totals", open=1)
        prefixed = Log(FileSink(file.fileno()), prefixed=True)
        prefixed.error("broken", what="x" * 9999)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    time = b"time=1970-01-02T00:00:00.500Z"
    assert lines[0] == time + b" level=warning event=backend_fault host=a.example\n"
    assert lines[1] == time + b" level=info event=totals open=1\n"
    assert lines[2].startswith(b"<3>event=broken what=xxx")
    assert len(lines[2]) == MAX_LINE
    assert lines[2].endswith(b"x\n")


def test_journal_stream() -> None:
    one, other = socket.socketpair()
    with one, other:
        status = os.fstat(one.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(one.fileno(), environment)
        assert not is_journal(other.fileno(), environment)
        sink = sink_of(one.fileno())
        assert isinstance(sink, SocketSink)
        sink.close()


def test_nothing_that_is_logged_raises() -> None:
    class Bad:
        def __str__(self) -> str:
            raise ValueError

    log = Log(FileSink(-1))
    log.info("bad", what=Bad())
    assert log.dropped == 1

    def broken() -> float:
        raise MemoryError

    log = Log(FileSink(-1), clock=broken)
    for _ in range(3):
        log.warning("bad")
    assert not log.report_repeats()
    assert log.dropped == 2


class Whim:
    """A sink that takes what a plan says: a number of bytes, None for "not now", -1 for "never"."""

    batch = MAX_LINE

    def __init__(self, plan: list[int | None]) -> None:
        self._plan = plan
        self.data = b""

    def write(self, lines: bytes) -> int:
        step = self._plan.pop() if self._plan else len(lines)
        if step is None:
            raise BlockingIOError
        if step < 0:
            raise OSError(errno.ENOSPC, "full")
        self.data += lines[:step]
        return min(step, len(lines))

    def close(self) -> None:
        pass


@given(
    plan=st.lists(st.one_of(st.none(), st.just(-1), st.integers(1, 200)), max_size=60),
    sizes=st.lists(st.integers(0, 150), max_size=40),
)
def test_short_writes_merge_no_lines(plan: list[int | None], sizes: list[int]) -> None:
    """However a destination takes them: a line is whole, or counted and nothing behind it."""
    sink = Whim(plan)
    log = Log(sink)
    for number, size in enumerate(sizes):
        log.info("one", number=number, text="x" * size, end="here")
    plan.clear()
    assert not log.flush()
    log.info("last")
    text = sink.data.decode()
    lines = text.splitlines()
    ends = re.findall(r"event=one number=(\d+) .*end=here$", text, re.MULTILINE)
    whole = [int(one) for one in ends]
    assert whole == sorted(whole)
    lost = sum(int(one) for one in re.findall(r"log_lines_dropped count=(\d+)", text))
    # One that lacked nothing but its end counts as lost.
    torn = sum(not re.search("event=(one.*end=here|last|log_lines.*)$", line) for line in lines)
    assert len(sizes) <= len(whole) + lost <= len(sizes) + len(whole)
    assert len(sizes) == len(whole) + lost or torn < lost
    assert all(line.count("event=") <= 1 for line in lines)
    assert sum(line.endswith("level=info event=last") for line in lines) == 1
    assert log.dropped == 0
    assert log._waiting == 0


def test_warnings_that_come_again_are_counted() -> None:
    """One line at once for each that is another, a count of the others at the end of the period."""
    clock, sink = Clock(), Whim([])
    log = Log(sink, clock=lambda: clock.now)
    log.on_repeats = Sweep(clock.later, PERIOD, log.report_repeats).wake
    for _ in range(1000):
        log.warning("backend_fault", host="a.example", error="is a directory")
        log.warning("backend_fault", host="b.example", error="is a directory")
        log.warning("backend_fault", host="a.example", error="accept queue full")
        log.error("unexpected_error", error="accept queue full")
    log.warning("backend_fault", host="c.example", error="is a directory")
    assert sink.data.count(b"\n") == 5
    assert clock.timers == 1
    sink.data = b""
    clock.advance(PERIOD)
    a = "event=backend_fault host=a.example error"
    assert [line.partition(" level=")[2] for line in sink.data.decode().splitlines()] == [
        f'warning {a}="is a directory" count=999',
        'warning event=backend_fault host=b.example error="is a directory" count=999',
        f'warning {a}="accept queue full" count=999',
        'error event=unexpected_error error="accept queue full" count=999',
    ]
    # At rest again, and the next one is a first.
    assert clock.timers == 0
    sink.data = b""
    log.warning("backend_fault", host="c.example", error="is a directory")
    assert sink.data.endswith(b'host=c.example error="is a directory"\n')
    clock.advance(PERIOD)
    assert sink.data.count(b"\n") == 1


def test_no_count_is_lost_at_the_end(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        log = Log(FileSink(file.fileno()))
        for _ in range(3):
            log.warning("accept_failed")
        log.close()
    assert (tmp_path / "log").read_text().endswith(" event=accept_failed count=2\n")


@given(
    st.text(st.characters(codec=None, categories=None) | st.sampled_from('"\\= \n\x7f\U0001f600'))
)
def test_readers_of_logfmt_read_what_was_written(text: str) -> None:
    """They take a string of JSON in quotes (go-logfmt, which Loki and Prometheus use, has its rules
    from encoding/json), and else all up to the next blank, without quotes and equals signs."""
    written = field(text)
    if written.startswith('"'):
        assert json.loads(written) == text
        assert re.fullmatch("[ -~]+", written)
    else:
        assert written == text
        assert re.fullmatch(r"[!#-<>-~]+", written)


def test_another_program_reads_the_lines(tmp_path: pathlib.Path) -> None:
    """lnav(1) has a reader of logfmt, which has nothing in common with us."""
    if shutil.which("lnav") is None:
        pytest.skip("lnav is missing: install lnav")
    hostile = [
        "a b",
        'c"d\\',
        "\n event=x y=1",
        "\x1b[2J",
        "\x00'",
        "é\u2028\U0001f600",
        "\\u0041",
    ]
    with (tmp_path / "log").open("wb", buffering=0) as file:
        log = Log(FileSink(file.fileno()), Level.CONNECTIONS, clock=lambda: 86400.5)
        for host in hostile:
            log.connection(client="[2001:db8::1]:443", host=host, end="closed", hello_ms=0)
    lines = (tmp_path / "log").read_text().splitlines()
    rows = ",".join("('{}')".format(line.replace("'", "''")) for line in lines)
    query = f";SELECT logfmt2json(column1) AS read FROM (VALUES {rows})"
    done = subprocess.run(
        ["lnav", "-n", "-c", query, "-c", ":write-jsonlines-to -"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=os.environ | {"HOME": str(tmp_path), "TERM": "dumb"},
        check=True,
        timeout=60,
    )
    found = [
        json.loads(line)["read"] for line in done.stdout.decode().split("\n") if line[:1] == "{"
    ]
    assert found == [
        {
            "time": "1970-01-02T00:00:00.500Z",
            "level": "info",
            "event": "connection",
            "client": "[2001:db8::1]:443",
            "host": host,
            "end": "closed",
            "hello_ms": 0,
        }
        for host in hostile
    ]
