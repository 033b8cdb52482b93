"""The log can neither raise, nor block, nor kill."""

import os
import pathlib
import socket

from sniproxy.log.log import Level, Log, field, is_journal
from sniproxy.log.sinks import MAX_LINE, FileSink, SocketSink, sink_of


def test_fields_are_one_word() -> None:
    assert field("a.example:443") == "a.example:443"
    assert field('say "hi"\n\x1b') == '"say \\"hi\\"\\n\\x1b"'
    assert field("") == '""'
    assert field("é=1") == '"\\xe9=1"'


def test_form_and_levels(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        log = Log(sink_of(file.fileno()), Level.ERROR, clock=lambda: 86400.5)
        log.info("start")
        log.warning("backend_fault", host="a.example")
        log.reply("totals", open=1)
        prefixed = Log(FileSink(file.fileno()), prefixed=True)
        prefixed.error("broken", what="x" * 9999)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    time = b"1970-01-02T00:00:00.500Z"
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
