"""What a connection may cost the interpreter: bytecodes of ours and the memory of our objects,
counted and not timed.

All ends are in the test's own process, which takes the turns, so that each run sees the same ones
and counts the same. What functions in C do for a bytecode is not counted here, and most of
it is the system calls of ``test_budget.py``.
"""

import contextlib
import os
import pathlib
import socket
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from types import FrameType

import pytest

import sniproxy
from sniproxy.dataplane.asking import Asking
from sniproxy.dataplane.listener import Listener
from sniproxy.parser.proxy_header import version_2
from sniproxy.process import resolving
from sniproxy.process.board import FOREVER, Board
from sniproxy.process.resolving import GO, Resolver
from tests.desk import Counter as Desk
from tests.end_to_end.harness import Backend
from tests.end_to_end.test_budget import Budget
from tests.hello import hello
from tests.plane import Plane

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11),
    reason="not applicable: other versions of Python have other bytecodes",
)

OURS = os.path.dirname(sniproxy.__file__)
MANY = 64
ANSWER = b"a" * 100

CONNECTION = Budget(
    1872, "the usual hello's way, two sockets, two ends, and nine turns of 50; 38 to count it"
)
ANNOUNCED = Budget(2103, "a header of version 2 before it, and the hello moved to its place")
AMONG_MANY = Budget(1545, "the same, with turns for several")
ROUND_TRIP = Budget(270, "two turns, two events, twice a read and a write")
ROUND_TRIP_AMONG_MANY = Budget(205, "the same, with turns for 64")
MEMORY = Budget(
    810, "bytes: two ends and sockets, places in a set and in a list that grows in steps"
)
MEMORY_LOGGED = Budget(1150, "who it is, for a line at its end and one each hour")
ISOLATED = Budget(
    2487, "a connection, a message with a question, one with its answer, and two turns more"
)
ISOLATED_AMONG_MANY = Budget(1824, "the same, with turns and messages for several")
RESOLVED = Budget(393, "a question, an owner, a connect, two files asked for, an answer")
REPLY = Budget(1886, "a connection, and a read and a write for what the socket holds of 200 kB")


class Counting:
    """Counts bytecodes of the package, by function, while it is entered."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, _event: str, _argument: object) -> object:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._count

    def _count(self, frame: FrameType, event: str, _argument: object) -> object:
        if event == "opcode":
            self.counts[frame.f_code.co_qualname] += 1
        return self._count


class World:
    """A data plane with a listening socket and a backend, and the bytecodes of its turns. A
    ``header`` in front of each hello is read where it is for balancers."""

    def __init__(self, folder: pathlib.Path, header: bytes = b"") -> None:
        self.plane = Plane(folder)
        self.plane.connections.log.connections = False
        self.counting = Counting()
        self.listener = Listener(
            self.plane._listening, self.plane.connections, announced=bool(header)
        )
        self.header = header
        self.backend: Backend = self.plane.backend("a.example", 2 * MANY)
        self.number = 0

    def turns(self, count: int = 3) -> None:
        """Take so many: more than are needed, so that none is left for the next."""
        with self.counting:
            for _ in range(count):
                self.plane.poller.select(0)

    def begin(self) -> socket.socket:
        """Connect, with a hello that is not any other's."""
        client = socket.create_connection(self.plane._listening.getsockname(), 20)
        self.number += 1
        wire = hello("a.example")
        client.sendall(self.header + wire[:11] + self.number.to_bytes(32) + wire[43:])
        return client

    def connections(self, count: int, answer: bytes = ANSWER) -> None:
        """Have so many connections at a time served, from their accept to their end."""
        clients = [self.begin() for _ in range(count)]
        self.turns(2 + count // 4)
        for _ in clients:
            with self.backend.accept() as stream:
                stream.recv(9999)
                stream.sendall(answer)
            self.backend.accepted.pop()
        self.turns()
        for client in clients:
            size = 0
            while chunk := client.recv(1 << 20):
                size += len(chunk)
            assert size == len(answer)
            client.close()
        self.turns()
        assert not self.plane.connections.totals.open


class IsolatedWorld(World):
    """The same with a resolver, which answers after each turn; its bytecodes are ``resolved``."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder)
        plane, self.desk, board = self.plane, Desk(0), Board()
        connections = plane.connections
        connections.asking = Asking(
            self.desk.desk, plane.poller, connections.log, plane.clock.later
        )
        plane.poller.unwatch(plane._listening.fileno())
        self.listener = Listener(plane._listening, connections, announced=False)
        self.warden, life = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.desk.sockets += [self.warden, life]
        questions, answers = self.desk.questions, [self.desk.answers]
        self.resolver = Resolver(plane.hosts, board, board.place(0), questions, answers, life)
        self.resolved = Counting()

    def turns(self, count: int = 3) -> None:
        for _ in range(count):
            super().turns(1)
            self.warden.send(GO)
            with self.resolved, contextlib.suppress(BlockingIOError):  # there are no more
                self.resolver.run()


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    if request.config.getoption("--sniproxy"):
        pytest.skip("not applicable: only an interpreter can be asked for its bytecodes")
    monkeypatch.chdir(tmp_path)
    header = getattr(request, "param", b"")
    made = IsolatedWorld(tmp_path) if header is None else World(tmp_path, header)
    yield made
    made.plane.close()
    if isinstance(made, IsolatedWorld):
        for one in made.desk.sockets:
            one.close()


def used(counting: Counting, units: int) -> float:
    """Give the bytecodes of each of so many units."""
    print(*counting.counts.most_common(40), sep="\n")
    return counting.counts.total() / units


@pytest.mark.parametrize(
    ("at_a_time", "answer", "budget"),
    [(1, ANSWER, CONNECTION), (MANY, ANSWER, AMONG_MANY), (1, b"b" * 200_000, REPLY)],
    ids=["one", "many", "reply"],
)
def test_bytecodes_of_a_connection(
    world: World, at_a_time: int, answer: bytes, budget: Budget
) -> None:
    world.connections(at_a_time, answer)
    world.counting.counts.clear()
    for _ in range(5):
        world.connections(at_a_time, answer)
    assert budget.allows(used(world.counting, 5 * at_a_time))


@pytest.mark.parametrize(
    ("at_a_time", "budget"), [(1, ISOLATED), (MANY, ISOLATED_AMONG_MANY)], ids=["one", "many"]
)
@pytest.mark.parametrize("world", [None], indirect=True, ids=["isolated"])
def test_bytecodes_of_a_connection_whose_look_up_is_isolated(
    world: IsolatedWorld, at_a_time: int, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind one that is slow, if only since others had the CPU, there is a message more.
    monkeypatch.setattr(resolving, "NORMAL", FOREVER)
    world.connections(at_a_time)
    world.counting.counts.clear()
    world.resolved.counts.clear()
    for _ in range(5):
        world.connections(at_a_time)
    assert budget.allows(used(world.counting, 5 * at_a_time))
    if at_a_time > 1:  # of one it is mostly seeing that there are no more
        assert RESOLVED.allows(used(world.resolved, 5 * at_a_time))


@pytest.mark.parametrize(
    "world", [version_2(("192.0.2.1", 1), ("192.0.2.2", 443), "")], indirect=True
)
def test_bytecodes_of_an_announced_connection(world: World) -> None:
    world.connections(1)
    world.counting.counts.clear()
    for _ in range(5):
        world.connections(1)
    assert ANNOUNCED.allows(used(world.counting, 5))


@pytest.mark.parametrize(
    ("at_a_time", "budget"), [(1, ROUND_TRIP), (MANY, ROUND_TRIP_AMONG_MANY)], ids=["one", "many"]
)
def test_bytecodes_of_a_round_trip(world: World, at_a_time: int, budget: Budget) -> None:
    clients = [world.begin() for _ in range(at_a_time)]
    world.turns(2 + at_a_time)
    streams = [world.backend.accept() for _ in clients]
    for stream in streams:
        stream.recv(9999)
    for round_ in range(6):
        if round_ == 1:
            world.counting.counts.clear()
        for senders, receivers in ((clients, streams), (streams, clients)):
            for one in senders:
                one.sendall(ANSWER)
            world.turns(1)
            assert all(other.recv(9999) for other in receivers)
    assert budget.allows(used(world.counting, 5 * at_a_time))
    for one in clients:
        one.close()


@pytest.mark.parametrize(
    ("logged", "budget"), [(False, MEMORY), (True, MEMORY_LOGGED)], ids=["not logged", "logged"]
)
def test_memory_of_a_connection_that_lasts(world: World, logged: bool, budget: Budget) -> None:
    world.plane.connections.log.connections = logged
    clients: list[socket.socket] = []

    def relay(count: int) -> None:
        for _ in range(count):
            clients.append(world.begin())
            world.plane.turn(3)
            world.backend.accept()

    relay(64)
    tracemalloc.start()
    try:
        relay(256)
        ours = tracemalloc.Filter(True, f"{OURS}/*")
        traces = tracemalloc.take_snapshot().filter_traces([ours]).traces
        assert budget.allows(sum(trace.size for trace in traces) / 256)
    finally:
        tracemalloc.stop()
        for client in clients:
            client.close()
