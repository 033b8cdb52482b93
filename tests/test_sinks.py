"""Each kind of destination, when it is full, stopped or gone."""

import contextlib
import errno
import os
import pathlib
import re
import socket
import termios
import tty

import pytest

from sniproxy.log.log import Log
from sniproxy.log.sinks import MAX_BACKLOG, PipeSink, SyslogSink, sink_of
from tests.processes import forbid, in_child


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
@pytest.mark.parametrize("size", [50, 3900])
def test_a_full_destination_drops_and_counts(kind: str, size: int) -> None:
    if kind == "pipe":
        read, write = os.pipe()
    elif kind == "terminal":
        read, write = os.openpty()
        tty.setraw(write)
    else:
        one, other = socket.socketpair()
        read, write = one.detach(), other.detach()
    log = Log(sink_of(write))
    called: list[int] = []
    log.on_backlog = lambda: called.append(1)
    for _ in range(20_000):
        log.info("filler", text="x" * size)
    assert called
    assert log.dropped > 0
    data = b""
    while not data.endswith(b"\n") or b"log_lines_dropped" not in data:
        log.flush()
        data += os.read(read, 1 << 20)
    written = data.count(b"event=filler")
    assert written >= MAX_BACKLOG
    assert f"event=log_lines_dropped count={20_000 - written}\n".encode() in data
    assert all(
        line.endswith(b"text=" + b"x" * size) for line in data.splitlines() if b"filler" in line
    )
    log.close()
    os.close(read)
    os.close(write)


def test_a_stopped_terminal_goes_on_where_it_was() -> None:
    """Ctrl-S and Ctrl-Q: lines wait meanwhile, and none is torn."""
    read, write = os.openpty()
    tty.setraw(write)
    log = Log(sink_of(write))
    flags = os.get_blocking(write)
    termios.tcflow(write, termios.TCOOFF)
    for number in range(20):
        log.info("filler", number=number, text="x" * 300)
    assert log.flush()
    termios.tcflow(write, termios.TCOON)
    assert not log.flush()
    data = b""
    while data.count(b"\n") < 20:
        data += os.read(read, 1 << 20)
    assert re.findall(rb"number=(\d+) text=x{300}\n", data) == [b"%d" % one for one in range(20)]
    # What others write to it is written as ever.
    assert os.get_blocking(write) == flags
    log.close()
    os.close(read)
    os.close(write)


def test_a_terminal_that_can_t_be_opened_anew(tmp_path: pathlib.Path) -> None:
    """In a jail: nothing else that is called like it is taken for it."""
    read, write = os.openpty()
    tty.setraw(write)
    name = os.ttyname(write)

    def work() -> None:
        place = tmp_path / name.lstrip("/")
        place.parent.mkdir(parents=True)
        place.touch()
        os.chroot(tmp_path)
        log = Log(sink_of(write))
        log.info("here")
        log.close()
        assert os.stat(name).st_size == 0

    if os.geteuid() == 0:
        in_child(work)
        assert os.read(read, 999).endswith(b"event=here\n")
    os.close(read)
    os.close(write)


def test_a_reader_that_is_gone(tmp_path: pathlib.Path) -> None:
    read, write = os.pipe()
    os.close(read)
    log = Log(PipeSink(write))
    log.info("lost")
    assert log.dropped == 1
    os.close(write)
    log.info("lost")
    assert log.dropped == 2
    log.close()
    with open("/dev/full", "wb", buffering=0) as full:
        log = Log(sink_of(full.fileno()))
        log.info("lost")
        assert log.dropped == 1
    log = Log(SyslogSink(str(tmp_path / "nobody")), prefixed=True)
    log.info("lost")
    assert log.dropped == 1
    log.close()


def test_a_pipe_where_splice_is_forbidden() -> None:
    def work() -> None:
        forbid("splice", errno.EPERM)
        read, write = os.pipe()
        log = Log(PipeSink(write))
        log.info("here")
        assert os.read(read, 999).endswith(b"event=here\n")
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x" * 4096)
        os.set_blocking(write, True)
        log.info("waits")
        assert log.flush()
        os.read(read, 1 << 20)
        assert not log.flush()
        assert os.read(read, 999).endswith(b"event=waits\n")
        os.close(read)
        log.info("lost")
        assert log.dropped == 1

    in_child(work)


def test_syslog(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "log"))
        log = Log(SyslogSink(str(tmp_path / "log")), prefixed=True)
        log.warning("fault", host="a.b")
        log.close()
        expected = f"<28>sniproxy[{os.getpid()}]: event=fault host=a.b"
        assert daemon.recv(1000).decode() == expected
