"""The relay between socket pairs, by a clock of the test's own, and with pipes that are refused."""

import array
import contextlib
import errno
import fcntl
import os
import pathlib
import resource
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from sniproxy.dataplane.pipes import BULK, MAX_PIPES, PIPE_SIZE, Pipe, Pipes
from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.relay import (
    BUFFER_SIZE,
    CHUNKS_A_TURN,
    HALF_CLOSED_IDLE,
    SEND_TIMEOUT,
    SPLICES_A_TURN,
    End,
    Relay,
    queued,
)
from tests.clock import Clock
from tests.end_to_end.harness import reset
from tests.processes import forbid, in_child

TURNS = 5000
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SMALL_BUFFER = 4096
SOMEBODY = 54321
"""A user of its own, who has no pipes yet."""


class Pair:
    """A relayed connection: what the client and the backend hold of it, and how it ended."""

    def __init__(self, tcp: bool = False, buffers: int = 0) -> None:
        self.clock = Clock()
        self.faults: list[Exception] = []
        self.poller = Poller(self.faults.append)
        self.relay = Relay(self.poller, self._ended, lambda: self.clock.now, self.clock.later)
        self.end: tuple[str, int, int, bool] | None = None
        self.client, client = tcp_pair() if tcp else socket.socketpair()
        self.backend, backend = socket.socketpair()
        for one in (client, backend) if buffers else ():
            one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffers)
            one.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, buffers)
        for one in (self.client, client, self.backend, backend):
            one.setblocking(False)
        self.ours = [client, backend]
        self.joined = self.relay.join(client, backend, "record", watched=False)

    def _ended(self, end: End, how: str, down: int, sending: bool) -> None:
        assert self.end is None
        assert end.record == "record"
        self.end = (how, end.moved, down, sending)
        self.poller.forget(end.socket.fileno())
        end.socket.close()

    def turn(self) -> None:
        self.poller.select(0.01)

    def idle(self) -> None:
        """Serve all events that there are. To TCP the end of a stream is a byte, which counts as
        taken when the other kernel acknowledges it: that is not to be later."""
        for _ in range(10):
            self.poller.select(0)
        for _ in range(TURNS):
            if self.end is not None or queued(self.ours[0]) != 1:
                break
            self.turn()

    def until_ended(self) -> tuple[str, int, int, bool]:
        for _ in range(TURNS):
            if self.end is not None:
                return self.end
            self.turn()
        raise AssertionError("it does not end")

    def transfer(self, source: socket.socket, target: socket.socket, data: bytes) -> bytes:
        """Send all of it and the end of the stream; give what arrives up to the end."""
        left, got = memoryview(data), bytearray()
        sending = True
        for _ in range(TURNS):
            try:
                left = left[source.send(left) :] if left else left
            except BlockingIOError:
                pass
            if sending and not left:
                source.shutdown(socket.SHUT_WR)
                sending = False
            self.poller.select(0)
            try:
                while chunk := target.recv(1 << 20):
                    got += chunk
            except BlockingIOError:
                continue
            return bytes(got)
        raise AssertionError(f"{len(left)} bytes not sent, {len(got)} came")

    def close(self) -> None:
        if self.end is None:
            self.relay.end(self.joined, "closed by the test")
        self.client.close()
        self.backend.close()
        self.relay.pipes.close()
        self.poller.close()
        assert not self.faults


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        return one, listening.accept()[0]


@pytest.fixture(params=[False, True], ids=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


def receive(pair: Pair, stream: socket.socket, size: int) -> bytes:
    data = b""
    for _ in range(TURNS):
        try:
            data += stream.recv(size - len(data))
        except BlockingIOError:
            pair.turn()
        if len(data) == size:
            return data
    raise AssertionError(data)


def test_each_way_at_once(pair: Pair) -> None:
    pair.client.send(b"up")
    pair.backend.send(b"down")
    assert receive(pair, pair.backend, 2) == b"up"
    assert receive(pair, pair.client, 4) == b"down"
    assert pair.end is None


def test_it_ends_with_its_second_direction(pair: Pair) -> None:
    pair.client.send(b"up")
    pair.client.shutdown(socket.SHUT_WR)
    assert receive(pair, pair.backend, 2) == b"up"
    pair.idle()
    assert pair.backend.recv(1) == b""
    assert pair.end is None
    pair.backend.send(b"down")
    pair.backend.close()
    assert pair.until_ended() == ("closed", 2, 4, False)
    assert pair.client.recv(99) == b"down"


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("size", [0, 1, BULK, 300_001, 9_000_000])
def test_nothing_is_lost(pair: Pair, way: str, size: int) -> None:
    data = os.urandom(size)
    ends = (pair.client, pair.backend) if way == "up" else (pair.backend, pair.client)
    assert pair.transfer(*ends, data) == data


def test_ten_minutes_of_half_closed_silence(pair: Pair) -> None:
    assert HALF_CLOSED_IDLE == 600
    pair.client.shutdown(socket.SHUT_WR)
    pair.idle()
    pair.clock.advance(590)
    assert pair.end is None
    pair.clock.advance(40)
    assert pair.end == ("idle", 0, 0, False)
    assert pair.client.recv(1) == b""
    pair.clock.advance(100)
    assert pair.clock.timers == 0


def test_each_byte_renews_the_ten_minutes(pair: Pair) -> None:
    pair.backend.shutdown(socket.SHUT_WR)
    pair.idle()
    for _ in range(5):
        pair.clock.advance(500)
        pair.client.send(b"x")
        assert receive(pair, pair.backend, 1) == b"x"
    assert pair.end is None
    pair.clock.advance(640)
    assert pair.end == ("idle", 5, 0, True)


def test_silence_in_both_directions_is_nobody_s_business(pair: Pair) -> None:
    pair.client.send(b"x")
    assert receive(pair, pair.backend, 1) == b"x"
    assert pair.clock.timers == 0
    pair.clock.advance(100_000)
    assert pair.end is None


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_slow_reader_stops_the_other_side(pair: Pair, way: str) -> None:
    """Then no more than one buffer of ours waits, and nothing is lost."""
    source, target = pair.client, pair.backend
    if way == "down":
        source, target = target, source
    sent, quiet = 0, 0
    while quiet < 50:
        try:
            sent += source.send(bytes(65536))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            pair.poller.select(0.001)
    assert sent < 64 << 20
    # The other way is open all the while.
    target.send(b"meanwhile")
    assert receive(pair, source, 9) == b"meanwhile"
    source.shutdown(socket.SHUT_WR)
    got = 0
    for _ in range(TURNS):
        try:
            while size := len(target.recv(1 << 20)):
                got += size
        except BlockingIOError:
            pair.turn()
            continue
        break
    assert got == sent


def test_a_reset_by_the_client_ends_both_directions() -> None:
    pair = Pair(tcp=True)
    pair.client.send(b"x")
    assert receive(pair, pair.backend, 1) == b"x"
    reset(pair.client)
    how, up, down, sending = pair.until_ended()
    assert (how, up, down, sending) == ("reset_by_client", 1, 0, False)
    assert pair.backend.recv(1) == b""
    pair.close()


def test_a_client_that_is_gone_while_it_is_not_read() -> None:
    """Back pressure must not hide it: the backend is told, though nobody reads the client."""
    pair = Pair(tcp=True)
    quiet = 0
    while quiet < 50:
        try:
            pair.client.send(bytes(65536))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            pair.poller.select(0.001)
    reset(pair.client)
    assert pair.until_ended()[0] == "reset_by_client"
    pair.close()


def test_a_client_that_times_out_has_not_reset() -> None:
    """It is there and takes nothing: the kernel gives it up (tcp(7), TCP_USER_TIMEOUT)."""
    pair = Pair(tcp=True)
    pair.ours[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50)
    while pair.end is None:
        with contextlib.suppress(OSError):
            pair.backend.send(bytes(65536))
        pair.turn()
    assert pair.end[0] == "client_timed_out"
    # Nobody is left to say farewell to.
    assert not pair.end[3]
    pair.close()


def test_last_words_of_a_backend_that_left_bytes_unread(pair: Pair) -> None:
    pair.client.send(b"never read")
    pair.idle()
    pair.backend.send(b"last words")
    pair.backend.close()  # by a reset, as unread bytes have it
    assert receive(pair, pair.client, 10) == b"last words"
    assert pair.until_ended()[0] in {"closed", "reset_by_backend"}


# Pipes.


def test_an_upload_is_spliced(pair: Pair) -> None:
    data = os.urandom(6_000_000)
    before = len(os.listdir("/proc/self/fd"))
    assert pair.transfer(pair.client, pair.backend, data) == data
    # A pipe has been made for it, empty again and kept for the next.
    assert len(os.listdir("/proc/self/fd")) >= before + 2
    pipe = pair.relay.pipes.take()
    assert pipe is not None
    assert pipe.held == 0
    with pytest.raises(BlockingIOError):
        os.read(pipe.read, 1)
    pair.relay.pipes.give_back(pipe)


def stall(pair: Pair) -> int:
    """Have an upload stop in a pipe, because its backend takes nothing; give its bytes. It counts
    as one from the start: how much the reads before the first splice give is up to the kernel."""
    sent = 0
    while pair.joined.pipe is None:
        pair.joined.bulk = 2
        sent += fill(pair.client)
        pair.turn()
    return sent


def bulk_by_copying() -> None:
    """Move much upwards where no pipe is to be had."""
    pair = Pair(tcp=True)
    before = os.listdir("/proc/self/fd")
    data = os.urandom(6_000_000)
    assert pair.transfer(pair.client, pair.backend, data) == data
    assert os.listdir("/proc/self/fd") == before
    pair.close()


def test_without_a_descriptor_for_a_pipe_it_copies() -> None:
    def work() -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 30, highest + 30))
        pair = Pair(tcp=True)
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        assert pair.relay.pipes.take() is None
        data = os.urandom(6_000_000)
        assert pair.transfer(pair.client, pair.backend, data) == data
        for fd in held:
            os.close(fd)
        pair.close()

    in_child(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_where_large_pipes_are_refused_it_copies() -> None:
    """pipe-user-pages-soft: a user who has had his share gets small pipes, and EPERM."""

    def work() -> None:
        os.setgroups([])
        os.setuid(SOMEBODY)
        pages = int(pathlib.Path("/proc/sys/fs/pipe-user-pages-soft").read_text())
        largest = int(pathlib.Path("/proc/sys/fs/pipe-max-size").read_text())
        if not pages or largest < PIPE_SIZE:
            return  # this kernel refuses nothing, or everything, and the other tests say so
        hoard = []
        for _ in range(pages * resource.getpagesize() // PIPE_SIZE + 1):
            hoard.append(Pipe())
            if hoard[-1].size < PIPE_SIZE:
                break
        assert hoard[-1].size < BULK
        with pytest.raises(PermissionError):
            fcntl.fcntl(hoard[-1].write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        assert Pipes().take() is None
        bulk_by_copying()

    in_child(work)


def test_the_last_of_the_pipes_is_somebody_else_s() -> None:
    """With all pipes taken, an upload is copied."""
    pair = Pair(tcp=True)
    taken = []
    while (pipe := pair.relay.pipes.take()) is not None:
        taken.append(pipe)
    data = os.urandom(3_000_000)
    assert pair.transfer(pair.client, pair.backend, data) == data
    for pipe in taken:
        pair.relay.pipes.give_back(pipe)
    pair.close()


def test_half_of_the_pipes_are_not_for_who_waits() -> None:
    """An upload that its backend does not take gives its pipe back, and loses nothing."""
    pair = Pair(tcp=True)
    taken = [pipe for _ in range(MAX_PIPES // 2) if (pipe := pair.relay.pipes.take())]
    sent = 0
    while pair.joined.unsent is None:
        sent += fill(pair.client)
        pair.turn()
        assert pair.joined.pipe is None
    assert pair.relay.pipes.count <= MAX_PIPES // 2 + 1
    assert pair.relay.pipes.take() is not None
    sent += fill(pair.client)
    assert receive(pair, pair.backend, sent) == b"f" * sent
    for pipe in taken:
        pair.relay.pipes.give_back(pipe)
    pair.close()


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.ENOMEM])
def test_where_splice_is_refused_it_copies(error: int) -> None:
    def work() -> None:
        forbid("splice", error)
        pair = Pair(tcp=True)
        data = os.urandom(6_000_000)
        assert pair.transfer(pair.client, pair.backend, data) == data
        pair.close()

    in_child(work)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOMEM])
def test_what_is_in_a_pipe_when_splice_is_refused_comes_out(error: int) -> None:
    def work() -> None:
        pair = Pair(tcp=True)
        data = b"f" * stall(pair)
        assert pair.joined.pipe is not None
        assert pair.joined.pipe.held
        forbid("splice", error)
        rest = os.urandom(3_000_000)
        assert pair.transfer(pair.client, pair.backend, rest) == data + rest
        assert pair.relay.pipes.take() is None or error == errno.ENOMEM
        pair.close()

    in_child(work)


@pytest.mark.parametrize("at_once", [False, True])
def test_bulk_goes_on_behind_urgent_data(at_once: bool) -> None:
    """splice(2) does not get past TCP's urgent byte; what it says there is no end."""
    pair = Pair(tcp=True)
    start, middle, rest = (os.urandom(size) for size in (3_000_000, 300_000, 100_000))
    got = b""
    for at in range(0, len(start), 500_000):
        pair.client.send(start[at : at + 500_000])
        got += receive(pair, pair.backend, len(start[: at + 500_000]) - len(got))
    assert got == start
    assert pair.joined.bulk > 1
    pair.client.send(middle)
    pair.client.send(b"!", socket.MSG_OOB)
    pair.client.send(rest)
    if at_once:
        pair.client.shutdown(socket.SHUT_WR)
    # Urgent data is beside the stream, RFC 9293 section 3.8.5.
    assert receive(pair, pair.backend, 400_000) == middle + rest
    if not at_once:
        pair.client.shutdown(socket.SHUT_WR)
    pair.idle()
    assert pair.backend.recv(1) == b""
    pair.close()


def test_a_backend_that_cannot_be_watched_is_closed(pair: Pair) -> None:
    """The client is still its owner's; nothing of the backend is left."""
    client, backend = socket.socketpair(), socket.socketpair()
    pair.poller.watch(backend[0].fileno(), pair.joined)  # a second time it can't be
    with pytest.raises(FileExistsError):
        pair.relay.join(client[0], backend[0], None, watched=False)
    assert backend[0].fileno() == -1
    assert backend[1].recv(1) == b""
    assert len(pair.poller.watchers()) == 2
    client[0].sendall(b"still open")
    for one in (*client, backend[1]):
        one.close()


def test_nor_is_anything_left_where_the_client_cannot_be_watched(pair: Pair) -> None:
    client, backend = socket.socketpair(), socket.socketpair()
    number = fcntl.fcntl(client[0].fileno(), fcntl.F_DUPFD_CLOEXEC, 500)
    high = socket.socket(fileno=number)
    pair.poller._epoll.register(high, 0)
    with pytest.raises(FileExistsError):
        pair.relay.join(high, backend[0], None, watched=False)
    assert backend[0].fileno() == -1
    assert backend[1].recv(1) == b""
    assert len(pair.poller.watchers()) == 2
    high.sendall(b"still open")
    for one in (*client, high, backend[1]):
        one.close()


def fill(stream: socket.socket) -> int:
    """Send until the other end takes nothing more; give the bytes."""
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += stream.send(b"f" * 4096)
    return size


@pytest.mark.parametrize("way", ["up", "down"])
def test_who_takes_nothing_at_all_loses_nothing(pair: Pair, way: str) -> None:
    """The first try already finds it full: not one byte of it was taken."""
    source, target = (pair.client, pair.backend) if way == "up" else (pair.backend, pair.client)
    filled = fill(pair.ours[1] if way == "up" else pair.ours[0])
    source.send(b"behind that")
    pair.idle()
    assert receive(pair, target, filled) == b"f" * filled
    assert receive(pair, target, 11) == b"behind that"
    assert (pair.joined.moved if way == "up" else pair.joined.peer.moved) == 11


def test_pipes_come_back(pair: Pair) -> None:
    """However an upload goes on and ends, it has used one pipe and left it."""
    data = os.urandom(9_000_000)
    before = len(os.listdir("/proc/self/fd"))
    assert pair.transfer(pair.client, pair.backend, data) == data
    assert len(os.listdir("/proc/self/fd")) - before in (0, 2)
    taken = [pipe for _ in range(MAX_PIPES) if (pipe := pair.relay.pipes.take())]
    assert len(taken) == MAX_PIPES
    for pipe in taken:
        pair.relay.pipes.give_back(pipe)


def test_pipes_of_connections_that_end_in_the_middle_come_back() -> None:
    for at, leave in enumerate((reset, socket.socket.close)):
        pair = Pair(tcp=True)
        stall(pair)
        # By the client's reset, or by the end of a backend that has not taken what is in the pipe.
        leave(pair.client if at == 0 else pair.backend)
        if at:
            pair.client.close()
        pair.until_ended()
        taken = [pipe for _ in range(MAX_PIPES) if (pipe := pair.relay.pipes.take())]
        assert len(taken) == MAX_PIPES
        for pipe in taken:
            pair.relay.pipes.give_back(pipe)
        pair.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have such large buffers")
@pytest.mark.parametrize("way", ["up by splicing", "up by copying", "down"])
def test_a_bulk_stream_gives_way_and_goes_on(way: str) -> None:
    """All has arrived, and no event comes any more: others have their turn, and then it again."""
    pair = Pair(tcp=True, buffers=32 << 20)
    if way == "up by copying":
        pair.relay.pipes.refused(OSError(errno.ENOSYS, ""))
    source, target, end = pair.client, pair.backend, pair.joined
    if way == "down":
        source, target, end = target, source, end.peer
        source.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 32 << 20)
    data = os.urandom(12_000_000)
    sent = 0
    while sent < len(data):
        sent += source.send(data[sent:])
    # A turn's look for events, and then what the last turn left.
    chunks = CHUNKS_A_TURN * BUFFER_SIZE
    most = chunks + (SPLICES_A_TURN * PIPE_SIZE if way == "up by splicing" else chunks)
    got, moved = b"", 0
    for _ in range(TURNS):
        pair.poller.select(0)
        assert end.moved - moved <= most
        moved = end.moved
        with contextlib.suppress(BlockingIOError):
            got += target.recv(32 << 20)
        if len(got) == len(data):
            break
    assert got == data
    assert end.moved == len(data)
    pair.close()


@pytest.mark.parametrize("held", [False, True])
def test_a_backend_that_reads_no_more_may_still_speak(pair: Pair, held: bool) -> None:
    """What the client sends is lost, as it would be without us; the last words are not."""
    if held:
        fill(pair.ours[1])
        pair.client.send(b"waits")
        pair.idle()
    pair.backend.shutdown(socket.SHUT_RD)
    pair.client.send(b"lost")
    pair.idle()
    assert pair.end is None
    pair.backend.send(b"last words")
    pair.backend.close()
    assert receive(pair, pair.client, 10) == b"last words"
    assert pair.until_ended()[0] == "reset_by_backend"


# Sides that are gone, and bytes that nobody takes.


def blocked(pair: Pair, way: str) -> tuple[socket.socket, socket.socket, int]:
    """Have the taker of one direction full, so that its source is not read; give the source, the
    taker and the bytes that the taker's kernel has."""
    source, target, taker = pair.client, pair.backend, pair.ours[1]
    if way == "down":
        source, target, taker = target, source, pair.ours[0]
    filled = more = fill(taker)
    while more:
        # TCP finds more room with each acknowledgement.
        select.select([], [taker], [], 0.05)
        filled += (more := fill(taker))
    return source, target, filled


def half_close(source: socket.socket) -> None:
    source.shutdown(socket.SHUT_WR)


LEAVE = pytest.mark.parametrize("leave", [half_close, socket.socket.close])
WAY = pytest.mark.parametrize("way", ["up", "down"])


@WAY
@LEAVE
@pytest.mark.parametrize("at_once", [False, True])
def test_who_takes_nothing_outlives_the_other_side_by_a_minute(
    pair: Pair, way: str, leave: Callable[[socket.socket], None], at_once: bool
) -> None:
    """The end of the stream lies behind bytes that nobody takes, so nobody reads it."""
    assert SEND_TIMEOUT == 60
    source, target, filled = blocked(pair, way)
    source.send(b"behind that")
    if not at_once:
        pair.idle()
        pair.clock.advance(10_000)
        assert pair.end is None
    leave(source)
    pair.idle()
    pair.clock.advance(59)
    assert pair.end is None
    pair.clock.advance(31)
    assert pair.end is not None
    assert pair.end[:3] == ("idle", 0, 0)
    assert pair.clock.timers <= 1
    pair.clock.advance(15)
    assert pair.clock.timers == 0
    # What the kernel had is not lost.
    assert receive(pair, target, filled) == b"f" * filled


@WAY
@LEAVE
def test_bytes_that_are_taken_are_delivered_to_the_last(
    pair: Pair, way: str, leave: Callable[[socket.socket], None]
) -> None:
    """However slowly: the kernel does not want more of ours for long, but hands its own out."""
    source, target, filled = blocked(pair, way)
    source.send(b"behind that")
    leave(source)
    pair.idle()
    taker = pair.ours[1 if way == "up" else 0]
    left, noted = filled, 0
    while left:
        pair.clock.advance(50)
        assert pair.end is None
        noted += (pair.joined if way == "up" else pair.joined.peer).moved == 0
        before = queued(taker)
        while left and queued(taker) == before:
            try:
                left -= len(target.recv(min(left, filled // 10)))
            except BlockingIOError:
                pair.turn()
    assert noted > 1
    assert receive(pair, target, 11) == b"behind that"
    pair.idle()
    assert target.recv(1) == b""


@WAY
def test_who_has_said_his_last_word_must_take_the_answer(pair: Pair, way: str) -> None:
    """The end of the stream has been read; what waits is for the one who sent it."""
    source, taker, _ = blocked(pair, way)
    taker.shutdown(socket.SHUT_WR)
    pair.idle()
    source.send(b"answer")
    pair.idle()
    assert source.recv(1) == b""
    pair.clock.advance(90)
    assert pair.end is not None
    assert pair.end[0] == "idle"


@WAY
def test_both_have_gone_and_nobody_has_taken(pair: Pair, way: str) -> None:
    source, taker, _ = blocked(pair, way)
    source.send(b"never taken")
    source.shutdown(socket.SHUT_WR)
    taker.shutdown(socket.SHUT_WR)
    pair.idle()
    pair.clock.advance(59)
    assert pair.end is None
    pair.clock.advance(31)
    assert pair.end is not None
    assert pair.end[0] == "idle"


def test_bytes_in_a_pipe_that_nobody_takes() -> None:
    pair = Pair(tcp=True)
    stall(pair)
    pair.backend.shutdown(socket.SHUT_WR)
    pair.idle()
    pair.clock.advance(90)
    assert pair.end is not None
    assert pair.end[0] == "idle"
    pair.close()


def test_what_waits_in_the_kernel_waits_too(pair: Pair) -> None:
    """The backend has only half-closed, and all of its answer is out of our hands."""
    blocked(pair, "down")
    pair.backend.shutdown(socket.SHUT_WR)
    pair.idle()
    assert pair.joined.peer.unsent is None
    pair.clock.advance(90)
    assert pair.end is not None
    assert pair.end[0] == "idle"


def test_a_backend_that_is_not_there_any_more_is_not_waited_for(pair: Pair) -> None:
    """All has been delivered, and the client neither sends nor leaves: nobody would take it."""
    pair.backend.send(b"last words")
    pair.backend.close()
    assert receive(pair, pair.client, 10) == b"last words"
    pair.idle()
    pair.clock.advance(59)
    assert pair.end is None
    pair.clock.advance(31)
    assert pair.end == ("idle", 0, 10, True)


def test_a_stale_event_does_not_make_one_leave(pair: Pair) -> None:
    """It told of another socket that had the same number a moment ago."""
    source, _, _ = blocked(pair, "down")
    source.send(b"behind that")
    pair.idle()
    pair.joined.peer.ready(select.EPOLLRDHUP)
    pair.clock.advance(10_000)
    assert pair.end is None


# Messages of several senders on a Unix socket.


def test_messages_of_several_processes_arrive_at_once(pair: Pair) -> None:
    """With credentials, a read ends where the sender changes, and no further event follows."""
    if pair.ours[0].family != socket.AF_UNIX:
        return
    pair.ours[0].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    pair.idle()
    pair.client.send(b"one, ")
    in_child(lambda: pair.client.send(b"two, "))
    pair.client.send(b"three")
    assert receive(pair, pair.backend, 15) == b"one, two, three"
    assert pair.end is None


def test_they_arrive_also_with_room_for_what_was_unsent(pair: Pair) -> None:
    """One event tells of both: the client has sent, and takes some of what we hold for it."""
    if pair.ours[0].family != socket.AF_UNIX:
        return
    pair.ours[0].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    pair.ours[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    pair.backend.send(bytes(BUFFER_SIZE))
    pair.idle()
    pair.client.send(b"one, ")
    in_child(lambda: pair.client.send(b"two, "))
    pair.client.send(b"three")
    with contextlib.suppress(BlockingIOError):
        while pair.client.recv(BUFFER_SIZE):
            pass
    pair.idle()
    # There is no room for all of it, else its last byte would have us look once more.
    assert pair.joined.peer.unsent is not None
    assert pair.backend.recv(99) == b"one, two, three"


def test_bytes_behind_a_passed_descriptor_arrive_at_once(pair: Pair) -> None:
    if pair.ours[0].family != socket.AF_UNIX:
        return
    passed = array.array("i", [0])
    pair.idle()
    pair.client.sendmsg([b"with it, "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
    pair.client.send(b"behind it")
    assert receive(pair, pair.backend, 18) == b"with it, behind it"
