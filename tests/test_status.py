"""A status socket in the test's own process: whoever comes, however it behaves, is bounded."""

import os
import pathlib
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from sniproxy.dataplane.counts import UP
from sniproxy.dataplane.poller import Poller
from sniproxy.process import status
from sniproxy.process.inherited import Listening
from sniproxy.process.status import MOST_AT_ONCE, PATIENCE, UNABLE, Status
from sniproxy.status.overview import Answered, Ask
from tests.clock import Clock
from tests.seen import Shown

TURNS = 2000
METRICS = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


class Source(Shown):
    """Somebody to be shown, who answers when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = True
        self.waiting: list[Callable[[], object]] = []
        self.pages: dict[int, Answered | None] = {0: Answered('"page"', 1, -1)}

    def refresh(self, then: Callable[[], object]) -> None:
        if self.at_once:
            then()
        else:
            self.waiting.append(then)

    def page(self, ask: Ask, then: Callable[[Answered | None], object]) -> None:
        then(self.pages.get(ask.worker))


class Desk:
    """A status socket, and those who visit it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.clock = Clock()
        self.faults: list[Exception] = []
        self.poller = Poller(self.faults.append, lambda: self.clock.now)
        self.source = Source()
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(folder / "status"))
        self.listening.listen(200)
        self.status = Status([Listening(self.listening)], self.source, self.poller)
        self._visitors: list[socket.socket] = []

    def visit(self, request: bytes = b"") -> socket.socket:
        """Have somebody connect, and come to be known."""
        visitor = socket.socket(socket.AF_UNIX)
        self._visitors.append(visitor)
        visitor.connect(self.listening.getsockname())
        visitor.setblocking(False)
        visitor.sendall(request)
        self.turn(2)
        return visitor

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.poller.select(0)

    def wait(self, seconds: float) -> None:
        """Let time pass, as coarsely as a sweep looks."""
        for _ in range(round(seconds * 2)):
            self.clock.now += 0.5
            self.turn(2)

    def read(self, visitor: socket.socket) -> bytes:
        """Read up to the end of the stream."""
        data = bytearray()
        for _ in range(TURNS):
            try:
                while piece := visitor.recv(1 << 16):
                    data += piece
            except BlockingIOError:
                self.clock.now += 0.001
                self.turn()
                continue
            return bytes(data)
        raise AssertionError(f"no end after {bytes(data)!r}")

    def here(self) -> int:
        """Count those who have a descriptor of ours."""
        return len(self.poller.watchers()) - 1

    def close(self) -> None:
        self.status.close()
        self.poller.close()
        for one in (*self._visitors, self.listening):
            one.close()


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    made = Desk(tmp_path)
    monkeypatch.setattr(status, "monotonic", lambda: made.clock.now)
    yield made
    made.close()
    assert made.faults == []


def leave(desk: Desk, *visitors: socket.socket) -> None:
    for one in visitors:
        one.close()
    desk.turn(2)
    assert desk.here() == len(desk.status.visitors) == 0


def test_an_answer_ends_its_connection(desk: Desk) -> None:
    visitor = desk.visit(METRICS)
    said = desk.read(visitor)
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.endswith(b"# EOF\n\r\n0\r\n\r\n")
    leave(desk, visitor)


def test_a_request_may_come_byte_by_byte_and_the_client_say_that_it_was_all(desk: Desk) -> None:
    visitor = desk.visit()
    for place in range(len(METRICS)):
        visitor.sendall(METRICS[place : place + 1])
        desk.turn()
    visitor.shutdown(socket.SHUT_WR)
    assert desk.read(visitor).endswith(b"0\r\n\r\n")
    assert desk.here() == 0


def test_an_answer_to_head_is_a_head(desk: Desk) -> None:
    right = [b"HEAD %b HTTP/1.0\r\n" % path for path in (b"/", b"/metrics", b"/nothing")]
    for asking in (*right, b"HEAD / HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\nX : y\r\n"):
        visitor = desk.visit(asking + b"\r\n")
        said = desk.read(visitor)
        assert said.count(b"\r\n\r\n") == 1
        assert said.endswith(b"\r\n\r\n")


def test_who_ends_in_the_middle_is_told(desk: Desk) -> None:
    visitor = desk.visit(METRICS[:-1])
    visitor.shutdown(socket.SHUT_WR)
    assert desk.read(visitor).startswith(b"HTTP/1.1 400 ")
    assert desk.here() == 0


def test_who_leaves_in_the_middle_is_forgotten(desk: Desk) -> None:
    for request in (METRICS[:-1], b""):
        desk.visit(request).close()
        desk.turn(3)
        assert desk.here() == 0


def test_nothing_and_an_end_are_nothing(desk: Desk) -> None:
    visitor = desk.visit()
    visitor.shutdown(socket.SHUT_WR)
    assert desk.read(visitor) == b""
    assert desk.here() == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_browser_that_was_led_here_is_told_nothing(desk: Desk, address: str) -> None:
    """By a page of whose name's owner says that it is here."""
    asking = b"GET /status.json HTTP/1.1\r\nHost: %b\r\n\r\n"
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as here:
        status = Status([Listening(here)], desk.source, desk.poller)
        for host, line in ((b"a.example:80", b"HTTP/1.1 421 "), (b"localhost", b"HTTP/1.1 200 ")):
            with socket.create_connection((address, here.getsockname()[1])) as visitor:
                visitor.setblocking(False)
                visitor.sendall(asking % host)
                desk.turn(2)
                assert desk.read(visitor).startswith(line)
        status.close()
        desk.poller.forget(here.fileno())
    # At the Unix socket there is no browser, and whoever asks for others has its own name.
    assert desk.read(desk.visit(asking % b"a.example")).startswith(b"HTTP/1.1 200 ")


def test_pages_are_asked_for(desk: Desk) -> None:
    visitor = desk.visit(b"GET /status.json?connections=5 HTTP/1.0\r\n\r\n")
    assert b'"open_connections":["page"],"next":null}' in desk.read(visitor)


def test_pages_are_asked_for_one_at_a_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel has room for one, and loses the others. Who has left is passed over."""
    asked: list[Callable[[Answered | None], object]] = []
    monkeypatch.setattr(desk.source, "page", lambda _, then: asked.append(then))
    visitors = [desk.visit(b"GET /status.json?connections=5 HTTP/1.0\r\n\r\n") for _ in range(4)]
    desk.turn(5)
    for one in visitors[:2]:
        one.close()
    desk.turn(5)
    for one in visitors[2:]:
        assert len(asked) == 1
        asked.pop()(desk.source.pages[0])
        if one is visitors[2]:  # that was the page of the one who has left
            assert len(asked) == 1
            asked.pop()(desk.source.pages[0])
        assert b'"open_connections":["page"],"next":null}' in desk.read(one)
    assert asked == []
    leave(desk, *visitors)


def test_nothing_is_said_before_all_have_looked(desk: Desk) -> None:
    desk.source.at_once = False
    visitor = desk.visit(METRICS)
    desk.turn(9)
    (row,) = (part.host("a.example", 0) for part in desk.source.parts[:1])
    row[UP] += 1000
    desk.source.waiting.pop()()
    assert b"sniproxy_received_bytes_total 1300\n" in desk.read(visitor)


def test_who_is_silent_is_told_and_left(desk: Desk) -> None:
    """Also one who does not go when it is told."""
    visitor = desk.visit(b"GET /")
    desk.wait(PATIENCE + 0.5)
    assert desk.read(visitor).startswith(b"HTTP/1.1 408 ")
    assert desk.here() == len(desk.status.visitors) == 1
    desk.wait(PATIENCE + 0.5)
    assert desk.here() == len(desk.status.visitors) == 0


def test_who_asks_late_does_not_have_others_stay_longer(desk: Desk) -> None:
    early, late = desk.visit(), desk.visit()
    desk.wait(PATIENCE - 1)
    early.sendall(METRICS)
    desk.wait(1.5)
    assert desk.read(late).startswith(b"HTTP/1.1 408 ")


def test_who_does_not_read_is_left(desk: Desk) -> None:
    for number in range(3000):
        desk.source.parts[0].host(f"{number}.example", "")[UP] = 1
    visitor = desk.visit(METRICS)
    desk.wait(PATIENCE - 1)
    assert desk.here() == 1
    desk.wait(1.5)
    assert desk.here() == 0
    assert not desk.read(visitor).endswith(b"0\r\n\r\n")


def test_few_are_answered_at_a_time(desk: Desk) -> None:
    """One more ends who has been silent for longest, or is refused itself."""
    desk.source.at_once = False
    waiting = [desk.visit(METRICS) for _ in range(MOST_AT_ONCE - 1)]
    silent = desk.visit()
    asks = desk.visit(METRICS)
    assert desk.read(silent).startswith(b"HTTP/1.1 503 ")
    refused = desk.visit(METRICS)
    assert desk.read(refused).startswith(b"HTTP/1.1 503 ")
    while desk.source.waiting:
        desk.source.waiting.pop()()
    for one in (*waiting, asks):
        assert desk.read(one).endswith(b"0\r\n\r\n")
    leave(desk, silent, refused, asks, *waiting)


def test_who_has_its_answer_and_does_not_leave_makes_room(desk: Desk) -> None:
    visitors = []
    for _ in range(3 * MOST_AT_ONCE):
        visitors.append(desk.visit(METRICS))
        assert desk.read(visitors[-1]).endswith(b"0\r\n\r\n")
        assert desk.here() <= MOST_AT_ONCE + 1
    leave(desk, *visitors)


def test_who_never_ends_is_read_a_piece_at_a_time(desk: Desk) -> None:
    """However much there is: here the kernel has as much as it takes, and it is no end."""
    visitor = desk.visit()
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    visitor.sendall(METRICS)
    sent = 0
    try:
        while True:
            sent += visitor.send(bytes(4096))
    except BlockingIOError:
        pass
    desk.poller.select(0)
    turns = 1
    while desk.poller._unfinished:
        desk.poller.select(0)
        turns += 1
    assert turns + 1 >= sent // (status.MOST_READ * 4096) > 9
    assert desk.read(visitor).endswith(b"0\r\n\r\n")


def test_an_answer_that_fails_breaks_off(desk: Desk) -> None:
    """It does not end as if that had been all, and nobody waits for the rest."""

    def fail(_then: object) -> None:
        raise MemoryError

    desk.source.refresh = fail  # type: ignore[method-assign, assignment]
    visitor = desk.visit()
    visitor.sendall(METRICS)
    with pytest.raises(MemoryError):
        desk.turn(3)
    assert not desk.read(visitor).endswith(b"0\r\n\r\n")
    assert desk.here() == 0


def test_without_a_descriptor_there_is_one(desk: Desk) -> None:
    """It is held back for that, and again when its visitor has left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for one in ours:
        one.connect(desk.listening.getsockname())
        one.setblocking(False)
        one.sendall(METRICS)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        for one in ours:
            desk.turn(5)
            assert desk.read(one).endswith(b"0\r\n\r\n")
            one.close()
            desk.clock.now += UNABLE
            desk.turn(3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert desk.here() == 0


def test_a_forked_process_keeps_none_of_it(desk: Desk) -> None:
    """Nor what is held back."""
    before = len(os.listdir("/proc/self/fd"))
    visitor = desk.visit(METRICS[:5])
    desk.status.close()
    visitor.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # what was held back
    assert desk.here() == 0
