"""Each kind of destination, when it is full, stopped or gone."""

import contextlib
import errno
import os
import pathlib
import random
import re
import resource
import socket
import termios
import tty

import pytest

from sniproxy.log.log import MAX_BACKLOG, Log
from sniproxy.log.sinks import MAX_LINE, PipeSink, SyslogSink, sink_of
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
    # What waits is bounded by its bytes, short lines or long ones.
    assert MAX_BACKLOG - MAX_LINE < sum(map(len, log._backlog)) <= MAX_BACKLOG
    data = b""
    while log.flush():
        data += os.read(read, 1 << 20)
    log.info("last")
    while not data.endswith(b"event=last\n"):
        log.flush()
        data += os.read(read, 1 << 20)
    written = data.count(b"event=filler")
    lost = sum(int(one) for one in re.findall(rb"event=log_lines_dropped count=(\d+)\n", data))
    assert written + lost == 20_000
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


@pytest.mark.parametrize("flags", [os.O_APPEND, 0], ids=["append", "offset"])
def test_a_full_disk_merges_no_lines(tmp_path: pathlib.Path, flags: int) -> None:
    """It takes a part of a line. When there is room again, another process writes first."""
    path = tmp_path / "log"

    def work() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
        logs = [Log(sink_of(fd)), Log(sink_of(fd))]
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for room in (1000, 1500, 2500):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            for number in range(50):
                logs[0].info("one", number=number, room=room)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            logs[1].info("other", room=room)
            logs[0].info("again", room=room)

    in_child(work)
    lines = path.read_text().splitlines()
    assert all(re.fullmatch(r"\S+Z level=\w+ event=\w+( \w+=\d+){1,2}", line) for line in lines)
    lost = [int(one) for one in re.findall(r"log_lines_dropped count=(\d+)", "\n".join(lines))]
    # Of 150 lines, each was written whole or counted.
    assert sum("event=one" in line for line in lines) + sum(lost) == 150
    assert sum("event=other" in line or "event=again" in line for line in lines) == 6


def test_two_that_find_the_disk_full_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers, which share a description: one writes as soon as the other's part of a line is taken
    back, and a part of its own is all that there is room for."""
    path = tmp_path / "log"

    def work() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        logs = [Log(sink_of(fd)), Log(sink_of(fd))]
        truncate = os.ftruncate

        def truncate_and_be_interrupted(*arguments: int) -> None:
            monkeypatch.undo()
            truncate(*arguments)
            logs[1].info("other", text="x" * 100)

        monkeypatch.setattr(os, "ftruncate", truncate_and_be_interrupted)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        logs[0].info("one", text="x" * 100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        logs[0].info("again", writer=0)
        logs[1].info("again", writer=1)

    in_child(work)
    lines = path.read_text().splitlines()
    assert [line.partition(" event=")[2] for line in lines] == [
        "again writer=0",
        "log_lines_dropped count=1",
        "again writer=1",
        "log_lines_dropped count=1",
    ]


def test_a_line_that_can_t_be_taken_back_is_ended(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "log"

    def work() -> None:
        forbid("ftruncate", errno.EPERM)
        log = Log(sink_of(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (130, hard))
        for number in range(9):
            log.info("one", number=number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.info("again")

    in_child(work)
    first, second, torn, again, lost = path.read_text().splitlines()
    assert (first[-8:], second[-8:]) == ("number=0", "number=1")
    assert torn == first[:10]
    assert again.endswith(" level=info event=again")
    assert lost.endswith(" event=log_lines_dropped count=7")


@pytest.mark.parametrize("seed", range(5))
def test_a_socket_that_takes_parts(seed: int) -> None:
    """Of TCP, with buffers as small as they get: what was begun is completed before the next."""
    chance = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        ours.connect(listening.getsockname())
        theirs, _ = listening.accept()
    with ours, theirs:
        log = Log(sink_of(ours.fileno()))
        data = b""
        for number in range(300):
            log.info("one", number=number, text="x" * chance.randrange(3900))
            if chance.random() < 0.5:
                data += theirs.recv(chance.randrange(1, 9000))
                log.flush()
        while log.flush():
            data += theirs.recv(9000)
        log.info("last")
        while not data.endswith(b"event=last\n"):
            while log.flush():
                data += theirs.recv(9000)
            data += theirs.recv(9000)
        log.close()
    whole = rb"\S+Z level=\w+ event=(\w+)( number=(\d+) text=(x+|\"\"))?( count=\d+)?"
    assert all(re.fullmatch(whole, line) for line in data.splitlines())
    lost = sum(int(one) for one in re.findall(rb"log_lines_dropped count=(\d+)", data))
    assert data.count(b"event=one") + lost == 300
