"""Asking resolver processes, whose part the test takes."""

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from sniproxy.dataplane.asking import LOOK, LOST, PATIENCE_IN_TROUBLE, UNDER_WAY, Asking
from sniproxy.dataplane.barred import BARRED, Barred
from sniproxy.resolver.answer import NOBODY, OWNER, TOGETHER, Answer, Outcome
from tests.desk import Counter, Question
from tests.plane import Plane


class Asker:
    def __init__(self) -> None:
        self.said: list[Answer] = []
        self.backends: list[socket.SocketType] = []
        self.end = ""
        self.patient = True
        self.again = 0

    def answered(self, said: Answer, backend: socket.SocketType | None) -> None:
        self.said.append(said)
        if backend is not None:
            self.backends.append(backend)

    def served(self, backend: socket.SocketType | None, version: int, owner: int) -> None:
        self.answered(USUAL._replace(version=version, owner=owner), backend)

    def may_wait(self) -> bool:
        return self.patient

    def once_more(self) -> None:
        self.again += 1

    def unanswered(self, reason: str) -> None:
        self.end = reason


class World(Counter):
    def __init__(self, plane: Plane) -> None:
        super().__init__(3, lambda: self.trouble)
        self.plane = plane
        self.trouble = ""
        log = plane.connections.log
        self.asking = Asking(self.desk, plane.poller, log, plane.clock.later)

    def take(self) -> list[Question]:
        self.plane.turn()
        return super().take()

    def reply(self, said: dict[int, Answer], *files: socket.socket, more: bool = False) -> None:
        self.tell(said, *files, more=more)
        self.plane.turn()


@pytest.fixture
def world(plane: Plane) -> Iterator[World]:
    made = World(plane)
    yield made
    for one in made.sockets:
        plane.poller.unwatch(one.fileno())
        one.close()


FOUND = Answer(Outcome.REACHED, "a.example")
USUAL = Answer(Outcome.REACHED, "")


@pytest.mark.parametrize("said", [FOUND, USUAL, USUAL._replace(version=2, owner=2**32 - 1)])
def test_an_answer_with_its_socket(world: World, said: Answer) -> None:
    asker = Asker()
    number = world.asking.ask(asker, "a.example", 1)
    assert world.take() == [Question(number, 3, 1, "a.example")]
    one, other = socket.socketpair()
    with one, other:
        world.reply({number: said}, one)
        assert asker.said == [said]
        (backend,) = asker.backends
        assert backend.gettimeout() == 0
        backend.send(b"hello")
        assert other.recv(9) == b"hello"
        backend.close()


def test_the_questions_of_a_turn_are_sent_together(world: World) -> None:
    """At its end; and, should memory have failed for it, at the next look."""
    for count in (3, TOGETHER + 1):
        numbers = [world.asking.ask(Asker(), "a.example", 0) for _ in range(count)]
        with pytest.raises(BlockingIOError):
            world.questions.recv(9)
        assert [one.number for one in world.take()] == numbers
        assert len(world.messages) == 1 + count // TOGETHER
        world.reply(dict.fromkeys(numbers[:TOGETHER], USUAL))
        if count > TOGETHER:
            world.reply({numbers[-1]: USUAL})
        world.messages.clear()
    number = world.asking.ask(Asker(), "a.example", 0)
    world.plane.poller._unfinished.clear()
    assert not world.take()
    world.plane.clock.advance(LOOK)
    assert [one.number for one in world.take()] == [number]


def test_several_answers(world: World) -> None:
    """In whatever order, with a socket for some: too few sockets are those of the first."""
    askers = [Asker() for _ in range(5)]
    numbers = [world.asking.ask(asker, "a.example", 0) for asker in askers]
    world.take()
    said = [USUAL, FOUND, Answer(Outcome.REFUSED, "b.example", alert=112, reason="x"), USUAL, FOUND]
    order = [4, 2, 0, 1, 3]
    pairs = [socket.socketpair() for _ in range(3)]
    world.reply({numbers[at]: said[at] for at in order}, *[one for one, _ in pairs])
    assert [asker.said for asker in askers] == [[one] for one in said]
    assert [len(asker.backends) for asker in askers] == [1, 1, 0, 0, 1]
    for at, (_, other) in zip((4, 0, 1), pairs, strict=True):
        backend = askers[at].backends.pop()
        backend.send(b"%d" % at)
        backend.close()
        assert other.recv(9) == b"%d" % at
    for one in [one for pair in pairs for one in pair]:
        one.close()


def test_what_nobody_has_looked_into_is_asked_once_more(world: World) -> None:
    """Who was looking has hung, or ended: of no fault of theirs, so as often as that may be."""
    askers = [Asker() for _ in range(4)]
    numbers = [world.asking.ask(asker, f"{at}.example", at % 2) for at, asker in enumerate(askers)]
    first = world.take()
    world.reply({numbers[0]: USUAL}, more=True)
    assert not world.take()
    world.asking.forget(numbers[3])
    world.reply({numbers[1]: Answer(Outcome.AGAIN, "")})
    assert world.take() == [first[2]]
    for _ in range(3):
        world.reply({numbers[2] + 99: USUAL})  # answers another message
        assert not world.take()
        world.tell_nothing(numbers[2])
        assert world.take() == [first[2]]
    assert [asker.again for asker in askers] == [0, 0, 0, 0]
    world.reply({numbers[2]: USUAL})
    assert [len(asker.said) for asker in askers] == [1, 1, 1, 0]


def test_a_reserve_gives_way_to_what_its_own_answer_brings(world: World) -> None:
    """With no descriptor left, the socket takes its number; whose answer comes first is another's
    matter."""
    askers = [Asker(), Asker(), Asker()]
    reserves = [socket.socket(), None, socket.socket()]
    numbers = [
        world.asking.ask(asker, "a.example", 0, reserve)
        for asker, reserve in zip(askers, reserves, strict=True)
    ]
    world.take()
    assert len(world.messages) == 2
    one, other = socket.socketpair()
    with one, other:
        world.reply({numbers[1]: FOUND}, one)
        world.take()
        assert len(world.messages) == 3  # a message's other sockets could take its number
        first, _, last = reserves
        assert first is not None
        assert last is not None
        place = first.fileno()
        assert place >= 0
        taken = []
        with contextlib.suppress(OSError):
            while (fd := os.dup(0)) < place:  # so that the next one is that number
                taken.append(fd)
            taken.append(fd)
        world.reply({numbers[0]: FOUND}, one)
        (backend,) = askers[0].backends
        assert backend.fileno() == place
        assert first.fileno() == -1
        assert last.fileno() >= 0
        world.asking.forget(numbers[2])
        assert last.fileno() == -1
        for fd in taken:
            os.close(fd)
        for asker in askers[:2]:
            asker.backends.pop().close()


@pytest.mark.parametrize("forget", [True, False])
def test_a_late_answer_is_closed_with_what_it_brings(world: World, forget: bool) -> None:
    asker = Asker()
    number = world.asking.ask(asker, "a.example", 0) if forget else 12345
    world.take()
    world.asking.forget(number)
    one, other = socket.socketpair()
    with other:
        with one:
            world.reply({number: FOUND}, one)
        assert other.recv(1) == b""
    assert not asker.said


MOST = UNDER_WAY * TOGETHER


@pytest.mark.parametrize("lost", [False, True])
def test_more_than_can_be_under_way_wait_here(world: World, lost: bool) -> None:
    """Until there is an answer, or none in time: it may be lost."""
    askers = [Asker() for _ in range(MOST + 2)]
    numbers = [world.asking.ask(one, "a.example", 0) for one in askers]
    assert [one.number for one in world.take()] == numbers[:MOST]
    world.asking.forget(numbers[MOST])
    some = dict.fromkeys(numbers[:TOGETHER], FOUND)
    world.reply(some, more=True)
    assert not world.take()
    assert askers[0].said == [FOUND]
    assert not askers[0].backends
    if lost:
        world.plane.clock.advance(LOOK)
    else:
        world.reply(some)
    assert [one.number for one in world.take()] == [numbers[MOST + 1]]


def test_a_queue_that_is_full_of_others_questions(world: World) -> None:
    mine = world.sockets[0]
    with contextlib.suppress(BlockingIOError):
        while mine.send(b"x" * 100):
            pass
    asker = Asker()
    number = world.asking.ask(asker, "a.example", 0)
    world.plane.turn()
    with contextlib.suppress(BlockingIOError):
        while world.questions.recv(512):
            pass
    world.plane.clock.advance(0.2)
    assert [one.number for one in world.take()] == [number]


def test_who_waits_in_vain_rings(world: World) -> None:
    world.asking.ask(Asker(), "a.example", 0)
    world.take()
    world.plane.clock.advance(0.1)
    with pytest.raises(BlockingIOError):
        world.bell.recv(9)
    world.plane.clock.advance(0.1)
    assert world.bell.recv(9) == b"?"


def test_who_has_no_time_left_is_told(world: World) -> None:
    asker = Asker()
    number = world.asking.ask(asker, "a.example", 0)
    world.take()
    asker.patient = False
    world.plane.clock.advance(0.2)
    assert asker.end == "no_answer"
    one, other = socket.socketpair()
    with other:
        with one:
            world.reply({number: FOUND}, one)
        assert other.recv(1) == b""


def test_trouble_is_told_after_a_second(world: World) -> None:
    asker = Asker()
    world.trouble = f"no_resolver {os.strerror(11)}"
    world.asking.ask(asker, "a.example", 0)
    for _ in range(PATIENCE_IN_TROUBLE - 1):
        world.plane.clock.advance(0.1)
        assert not asker.end
    world.plane.clock.advance(0.1)
    assert asker.end == "no_resolver"
    assert f'event=no_resolver error="{os.strerror(11)}"' in world.plane.log


def test_a_question_that_may_be_lost_is_asked_once_more(world: World) -> None:
    """But not where nobody can look up now, and not before its time."""
    early, late = Asker(), Asker()
    world.asking.ask(early, "a.example", 0)
    world.take()
    world.plane.clock.advance(LOOK)
    world.asking.ask(late, "b.example", 0)
    world.take()
    for look in range(LOST):
        assert (early.again, late.again) == (0, 0), look
        world.plane.clock.advance(LOOK)
    assert (early.again, late.again) == (1, 0)
    world.trouble = "hosts_directory_hangs"
    world.plane.clock.advance(LOOK)
    assert (early.again, late.again) == (1, 0)


STRANGER = 54_001
HELD = "hosts_directory_hangs"


def test_while_the_hosts_directory_is_held(world: World) -> None:
    """Only what was reached before is asked for, and whose it was is said; others wait here."""
    known, unknown, early = Asker(), Asker(), Asker()
    world.asking.reached["a.example"] = STRANGER
    first = world.asking.ask(early, "b.example", 0)
    world.take()
    world.trouble = HELD
    world.tell_nothing(first)
    assert not world.take()  # seen at once, without a look
    number = world.asking.ask(known, "a.example", 1)
    late = world.asking.ask(unknown, "b.example", 0)
    assert world.take() == [Question(number, 3, 1, "a.example", STRANGER)]
    world.asking.forget(world.asking.ask(Asker(), "c.example", 0))
    world.plane.clock.advance(LOOK)
    assert not unknown.end
    world.trouble = ""
    world.plane.clock.advance(LOOK)
    assert world.take() == [Question(one, 3, 0, "b.example") for one in (first, late)]
    world.asking.ask(Asker(), "a.example", 0)
    assert [one[3:] for one in world.take()] == [("a.example", NOBODY)]


def test_a_full_queue_while_the_hosts_directory_is_held(world: World) -> None:
    world.asking.reached["a.example"] = STRANGER
    world.trouble = HELD
    askers = [Asker() for _ in range(MOST + 2)]
    world.asking.ask(askers[0], "", 0)
    world.plane.clock.advance(LOOK)
    for asker in askers[1:]:
        world.asking.ask(asker, "a.example", 0)
    before = world.take()
    assert [one.owner for one in before] == [NOBODY, *[STRANGER] * TOGETHER]
    world.reply({before[0].number: FOUND})
    assert [one[3:] for one in world.take()] == [("a.example", STRANGER)] * TOGETHER


def test_who_was_never_reached_is_told_after_a_second(world: World) -> None:
    known, unknown = Asker(), Asker()
    world.asking.reached["a.example"] = STRANGER
    world.trouble = HELD
    world.asking.ask(Asker(), "", 0)
    world.plane.clock.advance(LOOK)
    world.asking.ask(known, "a.example", 0)
    world.asking.ask(unknown, "b.example", 0)
    for _ in range(PATIENCE_IN_TROUBLE):
        world.plane.clock.advance(LOOK)
    assert (known.end, unknown.end) == ("", HELD)


@pytest.mark.parametrize("account", ["a.example", STRANGER])
def test_who_is_barred_is_not_asked_for(world: World, account: str | int) -> None:
    """For as long as that lasts; and of an owner no resolver enters an entry."""
    whose = {"a.example": account, "b.example": "b.example"}
    barred = Barred(lambda directory: whose[directory], lambda: world.plane.clock.now)
    world.asking.bar(barred, barred.bar("a.example"))
    if account == STRANGER:
        assert OWNER.unpack(world.bell.recv(9)) == (STRANGER,)
    with pytest.raises(BlockingIOError):
        world.bell.recv(9)
    asker, forgotten, reserve = Asker(), Asker(), socket.socket()
    world.asking.ask(asker, "a.example", 0, reserve)
    assert reserve.fileno() == -1
    world.asking.forget(world.asking.ask(forgotten, "a.example", 0))
    assert not asker.end
    world.asking.ask(Asker(), "b.example", 0)
    assert [one.host for one in world.take()] == ["b.example"]
    world.plane.clock.advance(LOOK)
    assert (asker.end, forgotten.end) == ("owner_barred", "")
    world.plane.clock.advance(BARRED)
    for _ in range(2):
        world.asking.ask(Asker(), "a.example", 0)
    assert [one.host for one in world.take()] == ["a.example"] * 2
