"""Arrivals that ask, with a resolver of the test's own in their process."""

import socket
from collections.abc import Iterator

import pytest

from sniproxy.dataplane.announced import AnnouncedArrival
from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.asking import LOOK, LOST, Asking
from sniproxy.dataplane.connections import PATIENCE
from sniproxy.dataplane.holdings import Holdings
from sniproxy.dataplane.isolated import (
    IsolatedAnnouncedArrival,
    IsolatedArrival,
    IsolatedContender,
    arrival_kind,
)
from sniproxy.dataplane.shares import MOMENT
from sniproxy.dataplane.waiting import FOR_A_SPARE
from sniproxy.resolver.answer import UNSURE, Answer, Outcome
from sniproxy.resolver.reach import hanging, reach
from tests.desk import Counter, Question
from tests.end_to_end.harness import reset
from tests.hello import extension, hello, message, records, server_name
from tests.plane import Plane, alert

HELLO = hello("a.example")


class World(Counter):
    def __init__(self, plane: Plane) -> None:
        super().__init__(0)
        self.plane = plane
        connections = plane.connections
        connections.asking = Asking(self.desk, plane.poller, connections.log, plane.clock.later)

    def client(self, *first: bytes) -> socket.socket:
        client = self.plane.client(*first, kind=IsolatedArrival)
        self.plane.turn()
        return client

    def resolve(self) -> int:
        """Look up all that was asked, as a resolver does; say how much that was."""
        questions = self.take()
        for question in questions:
            said, backend = reach(self.plane.hosts, question.host, question.validates)
            files = [] if backend is None else [backend]
            self.tell({question.number: said}, *files, more=question is not questions[-1])
            for one in files:
                one.close()
        self.plane.turn(2)
        return len(questions)

    def take(self) -> list[Question]:
        self.plane.turn()
        return super().take()

    def say(self, number: int, said: Answer, *backend: socket.SocketType) -> None:
        self.tell({number: said}, *backend)
        self.plane.turn(2)


@pytest.fixture
def world(plane: Plane) -> Iterator[World]:
    made = World(plane)
    yield made
    plane.connections.close_all()
    for one in made.sockets:
        plane.poller.unwatch(one.fileno())
        one.close()


def test_kinds(plane: Plane) -> None:
    connections = plane.connections
    assert arrival_kind(connections, announced=False) is Arrival
    assert arrival_kind(connections, announced=True) is AnnouncedArrival


def test_kinds_where_look_ups_are_isolated(world: World) -> None:
    connections = world.plane.connections
    assert arrival_kind(connections, announced=False) is IsolatedArrival
    assert arrival_kind(connections, announced=True) is IsolatedAnnouncedArrival


@pytest.mark.parametrize("ends", [False, True])
def test_what_comes_before_the_answer_reaches_the_backend(world: World, ends: bool) -> None:
    backend = world.plane.backend("a.example")
    client = world.client(HELLO)
    client.sendall(b"meanwhile")
    if ends:
        client.shutdown(socket.SHUT_WR)
    world.plane.turn()  # this event is the arrival's, and none follows
    assert world.resolve() == 1
    stream = backend.accept()
    assert world.plane.read(stream, len(HELLO) + 9) == HELLO + b"meanwhile"
    if ends:
        world.plane.turn()
        assert stream.recv(1) == b""


def test_served(world: World) -> None:
    backend = world.plane.backend("a.example")
    client = world.client(HELLO)
    assert world.resolve() == 1
    stream = backend.accept()
    assert stream.recv(999) == HELLO
    client.sendall(b"more")
    assert world.plane.read(stream, 4) == b"more"


def test_refused(world: World) -> None:
    client = world.client(HELLO)
    world.resolve()
    assert world.plane.read(client, 7) == alert(112)


def test_who_goes_while_it_waits_leaves_nothing(world: World) -> None:
    client = world.client(HELLO)
    (question,) = world.take()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    world.plane.until(lambda: not world.plane.connections.totals.open)
    one, other = socket.socketpair()
    with one, other:
        world.say(question.number, Answer(Outcome.REACHED, "a.example"), one)
        one.close()
        assert other.recv(1) == b""


def test_what_nobody_has_looked_for_is_asked_once_more(world: World) -> None:
    client = world.client(HELLO)
    for _ in range(2):
        (question,) = world.take()
        world.say(question.number, Answer(Outcome.AGAIN, ""))
    assert not world.take()
    assert world.plane.read(client, 7) == alert(80)
    assert "end=refused:resolver_died" in world.plane.log


def test_no_descriptor_for_the_backend(world: World) -> None:
    """It is waited for, in the line of those who wait for one."""
    backend = world.plane.backend("a.example")
    world.client(HELLO)
    (question,) = world.take()
    world.say(question.number, Answer(Outcome.REACHED, "a.example"))
    assert list(world.plane.connections.lines) == [""]
    world.plane.clock.advance(0.01)
    assert world.resolve() == 1
    assert backend.accept().recv(999) == HELLO
    world.plane.clock.advance(0.1)
    assert not world.plane.connections.lines


def test_a_descriptor_at_anothers_cost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held until the answer comes that needs it; who goes before gives it back."""
    backend = world.plane.backend("a.example")
    shares = world.plane.connections.shares
    made: list[socket.socket] = []

    def give(*_: object) -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX))
        return made[-1]

    monkeypatch.setattr(shares, "backend", give)
    clients = [world.client(HELLO) for _ in range(2)]
    for question in world.take():
        world.say(question.number, Answer(Outcome.REACHED, "a.example"))
    assert [one.fileno() >= 0 for one in made] == [True, True]
    reset(clients[1])
    world.plane.turn(3)
    assert [one.fileno() >= 0 for one in made] == [True, False]
    assert world.resolve() == 2
    assert backend.accept().recv(999) == HELLO
    assert made[0].fileno() == -1


def test_who_lacks_what_is_lent_for_a_moment_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each has the next one try, since that one's answer gives it back; but not for long."""
    backend = world.plane.backend("a.example")
    world.client(HELLO)
    assert world.resolve() == 1
    streams = [backend.accept()]
    shares = world.plane.connections.shares
    shares._census()
    for name, value in {"lacking": 1, "restore": 1, "balance": 0}.items():
        monkeypatch.setattr(shares, name, lambda value=value: value)
    monkeypatch.setattr(shares, "make_room", lambda *_: None)
    monkeypatch.setattr(shares, "backend", lambda *_: socket.socket(socket.AF_UNIX))
    monkeypatch.setattr(Holdings, "greatest", lambda _: (2, ""))
    spares, shares._spares = shares._spares, []
    clients = [world.plane.client(HELLO, kind=IsolatedContender) for _ in range(2)]
    assert not world.take()
    assert list(world.plane.connections.lines) == [FOR_A_SPARE]
    shares._spares = spares
    world.plane.clock.advance(0.01)
    assert world.resolve() == len(clients)
    for _ in clients:
        streams.append(backend.accept())
        assert streams[-1].recv(999) == HELLO
    assert not world.plane.connections.lines.waits(FOR_A_SPARE)
    shares._spares = []
    monkeypatch.setattr(shares, "backend", lambda *_: None)
    monkeypatch.setattr(shares, "dealing", lambda: True)
    client = world.plane.client(HELLO, kind=IsolatedContender)
    world.plane.clock.advance(MOMENT + 0.2)
    shares._spares = spares
    assert world.plane.read(client, 7) == alert(80)
    assert "end=refused:no_descriptor" in world.plane.log


def test_who_waits_for_what_is_lent_tries_no_more_often_for_an_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try is a connection to the backend that is closed again."""
    world.client(HELLO)
    (question,) = world.take()
    monkeypatch.setattr(world.plane.connections.shares, "awaited", lambda _: True)
    world.say(question.number, Answer(Outcome.REACHED, "a.example"))
    assert world.plane.connections.lines.waits(FOR_A_SPARE)
    for _ in range(3):
        assert not world.take()
        world.plane.clock.advance(0.1)
        (question,) = world.take()
        world.say(question.number, Answer(Outcome.REACHED, "a.example"))


def test_who_is_to_send_the_rest_of_its_hello_is_in_no_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be tried there with what has come, as if that were all."""
    shares, connections = world.plane.connections.shares, world.plane.connections
    lent = [True]
    monkeypatch.setattr(shares, "awaited", lambda _: lent[0])
    wire = records(message(server_name((0, b"a.example")) + extension(21, bytes(400))), 2**14)
    client = world.client(wire[:-100])
    (question,) = world.take()
    assert question.validates == UNSURE
    world.say(question.number, Answer(Outcome.REACHED, "a.example"))
    assert connections.lines.waits(FOR_A_SPARE)
    world.plane.clock.advance(0.1)
    (question,) = world.take()
    world.say(question.number, Answer(Outcome.WHOLE, "a.example"))
    assert len(connections.undecided) == 1
    assert not connections.lines.waits(FOR_A_SPARE)
    world.plane.clock.advance(0.1)
    assert not world.take()
    client.sendall(wire[-100:])
    world.plane.turn()
    assert [one.validates for one in world.take()] == [0]


def test_who_is_about_to_be_connected_counts_for_its_host(world: World) -> None:
    backend = world.plane.backend("a.example")
    world.client(HELLO)
    world.resolve()
    stream = backend.accept()
    for host in ("a.example", "a.example", "b.example"):
        world.client(hello(host))
    shares = world.plane.connections.shares
    shares._census()
    hosts = shares._known.hosts
    assert hosts.greatest()[0] == 3
    assert len(hosts) == 2
    world.resolve()
    stream.close()


def test_in_a_line_one_asks_for_all(world: World) -> None:
    backend = world.plane.backend("a.example", 0)
    for _ in range(6):
        world.client(HELLO[:11] + world.plane.clock.now.hex().encode()[:1] * 32 + HELLO[43:])
        world.resolve()
    assert list(world.plane.connections.lines) == ["a.example"]
    world.plane.clock.advance(0.2)
    assert world.resolve() == 1
    # Who gets in has the next one ask at once.
    streams = [backend.accept()]
    world.plane.clock.advance(0.1)
    assert world.resolve() == 1
    assert world.resolve() == 1
    assert world.resolve() == 0
    for _ in range(5):
        streams.append(backend.accept())
        for _ in range(8):
            world.resolve()
            world.plane.clock.advance(0.06)
    assert len(streams) == 6


def test_whose_owner_hangs_waits_for_a_moment(world: World) -> None:
    client = world.client(HELLO)
    (question,) = world.take()
    world.say(question.number, hanging(7))
    assert list(world.plane.connections.lines) == ["a.example"]
    world.plane.clock.advance(0.1)
    (question,) = world.take()
    world.say(question.number, hanging(7)._replace(outcome=Outcome.REFUSED))
    assert world.plane.read(client, 7) == alert(80)
    assert "event=owner_hangs host=a.example uid=7" in world.plane.log


def test_time_is_up(world: World) -> None:
    client = world.client(HELLO)
    world.plane.clock.advance(PATIENCE + 0.2)
    assert world.plane.read(client, 7) == alert(80)
    assert "end=refused:no_answer" in world.plane.log


def test_a_question_that_is_lost_is_asked_once_more(world: World) -> None:
    backend = world.plane.backend("a.example")
    world.client(HELLO)
    assert len(world.take()) == 1
    for _ in range(LOST + 1):
        world.plane.clock.advance(LOOK)
    assert world.resolve() == 1
    assert backend.accept().recv(999) == HELLO


def test_it_is_not_asked_without_end(world: World) -> None:
    client = world.client(HELLO)
    for _ in range(4 * LOST):
        world.plane.clock.advance(LOOK)
    assert len(world.take()) == 2
    world.plane.clock.advance(PATIENCE)
    assert world.plane.read(client, 7) == alert(80)
