"""A resolver process, in the test's own."""

import os
import pathlib
import resource
import select
import socket
import time
from collections.abc import Iterator

import pytest

from sniproxy.process import resolving
from sniproxy.process.board import FOREVER, HELD, Bar, Board
from sniproxy.process.resolving import CAREFULLY, GO, MINUTE, NORMAL, TOO_MUCH, Resolver, taken
from sniproxy.resolver.answer import (
    LONGEST,
    NOBODY,
    OWNER,
    TOGETHER,
    Answer,
    Outcome,
    Question,
    answered,
    as_answer,
    ask,
)
from sniproxy.resolver.hosts import Hosts


class World:
    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.board = Board()
        self.place = self.board.place(0)
        kind = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.questions, theirs = socket.socketpair(*kind)
        self.answers, back = socket.socketpair(*kind)
        self.warden, self.its = socket.socketpair(*kind)
        self.sockets = [self.questions, theirs, self.answers, back, self.warden, self.its]
        self.resolver = Resolver(self.hosts, self.board, self.place, theirs, [back], self.its)

    def ask(self, number: int, *questions: Question) -> None:
        self.questions.send(ask(number, 0, questions))

    def run(self, *hosts: str, go: bytes = GO) -> list[tuple[int, bool, list[Answer]]]:
        """Ask in one message, and answer all; give which each message answers, whether more come,
        and how."""
        if hosts:
            self.ask(5, *[((number, NOBODY, 0), host) for number, host in enumerate(hosts)])
        self.questions.shutdown(socket.SHUT_WR)
        self.warden.send(go)
        self.resolver.run()
        self.answers.setblocking(False)
        messages = []
        while True:
            try:
                message, rights, _, _ = socket.recv_fds(self.answers, LONGEST, TOGETHER)
            except BlockingIOError:
                return messages
            for fd in rights:
                os.close(fd)
            sent, more, heads, texts = answered(message)
            some = []
            for head in heads:
                some.append(as_answer(head, texts[: head[4]]))
                texts = texts[head[4] :]
            assert not texts
            assert len(rights) == [one.outcome for one in some].count(Outcome.REACHED)
            messages.append((sent, more, some))

    def answer(self, host: str, go: bytes = GO) -> Answer:
        """Ask for one host."""
        ((sent, more, (said,)),) = self.run(host, go=go)
        assert (sent, more) == (5, False)
        return said


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no look-up be slow only since others have the CPU: there is a message more for that."""
    monkeypatch.setattr(resolving, "NORMAL", FOREVER)


@pytest.fixture
def world(hosts: Hosts, patient: None) -> Iterator[World]:
    made = World(hosts)
    yield made
    for one in made.sockets:
        one.close()


def test_one_question_after_the_other(world: World) -> None:
    pathlib.Path("a.example").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("a.example/tls-socket")
        listening.listen()
        world.ask(3, ((8, NOBODY, 0), "b.example"))
        first, second = world.run("a.example", "b.example", "a.example")
    assert first[:2] == (3, False)
    assert second[:2] == (5, False)
    assert [said.outcome for said in first[2] + second[2]] == [1, 0, 1, 0]
    assert not world.place.since
    assert world.place.question == (0, 0, 2)


def test_who_is_not_needed_leaves(world: World) -> None:
    world.warden.close()
    world.resolver.run()


def test_who_was_given_up_answers_no_more(world: World) -> None:
    """Not even the rest of its message, which others are asked; nor where nobody saw it hang."""
    world.ask(3, ((8, NOBODY, 0), "b.example"))
    world.place.give_up()
    assert [message[0] for message in world.run("a.example", "b.example")] == [3]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_nothing_of_anothers_is_kept_in_an_owners_entry(world: World) -> None:
    """It may hold us: what was found before is told first. Who is trusted is not feared."""
    whose = dict.fromkeys(("a.example", "b.example", "e.example"), 0)
    whose |= dict.fromkeys(("c.example", "d.example"), 54_001)
    for host, owner in whose.items():
        pathlib.Path(host).mkdir()
        os.chown(host, owner, -1)
    messages = world.run(*sorted(whose))
    assert [(more, len(said)) for _, more, said in messages] == [(True, 2), (False, 3)]


def test_who_looks_for_a_warden_that_has_died_leaves_anothers_place_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pathlib.Path("a.example").mkdir()
    entered = world.hosts.entering

    def replace(owner: int) -> None:
        monkeypatch.setattr(resolving, "NORMAL", NORMAL)
        entered(owner)
        world.board.begin()
        world.place.take(0, 9)
        select.select([], [], [], 0.002)
        world.place.begin(7)

    world.hosts.entering = replace
    ((sent, more, said),) = world.run("a.example", "a.example")
    assert (sent, more, len(said)) == (5, False, 1)
    assert world.place.question == (0, 9, 7)
    assert world.place.since


def test_who_comes_loose_leaves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pathlib.Path("a.example").mkdir()
    hosts, entered = world.hosts, world.hosts.entering

    def hang(owner: int) -> None:
        monkeypatch.setattr(resolving, "NORMAL", NORMAL)
        entered(owner)
        assert world.place.owner == owner
        assert world.place.question == (0, 5, 1)
        world.place.give_up()
        select.select([], [], [], 0.002)

    hosts.entering = hang
    ((sent, more, said),) = world.run("b.example", "a.example", "b.example")
    assert (sent, more, len(said)) == (5, False, 2)


def test_for_another_warden_nobody_looks(world: World) -> None:
    world.board.begin()
    assert world.run("a.example", "b.example") == [(5, False, [])]


@pytest.mark.parametrize(
    ("why", "reason"), [(0, "owner_hangs"), (1, "owner_slow"), (2, "owner_barred")]
)
def test_who_is_barred(world: World, why: int, reason: str) -> None:
    pathlib.Path("a.example").mkdir()
    mine = os.geteuid()
    world.board.bar({mine: Bar(mine, time.monotonic_ns() - MINUTE, FOREVER, why)})
    said = world.answer("a.example")
    assert (said.outcome, said.reason, said.owner) == (Outcome.REFUSED, reason, mine)


def test_who_has_just_been_barred_may_be_waited_for(world: World) -> None:
    pathlib.Path("a.example").mkdir()
    world.board.bar({os.geteuid(): Bar(os.geteuid(), time.monotonic_ns(), FOREVER)})
    assert world.answer("a.example").outcome == Outcome.MAY_PASS


def test_who_is_slow_is_told_of(world: World) -> None:
    """More than a second too much, in all."""
    world.warden.setblocking(False)
    world.place.enter(54_001)
    for _ in range(2):
        world.resolver._account(TOO_MUCH * 2 // 5)
        with pytest.raises(BlockingIOError):
            world.warden.recv(9)
    world.resolver._account(TOO_MUCH * 2 // 5)
    assert world.warden.recv(9) == OWNER.pack(54_001)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
@pytest.mark.parametrize(
    ("uid", "count", "counted"),
    [(54_001, 1, []), (54_001, 2, [54_001]), (os.geteuid(), 3, [])],
)
def test_who_is_slow_again_is_counted(
    world: World, uid: int, count: int, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process uses is asked for only where something was slow before; and not of who is
    trusted. Who waits behind what is slow does not wait for what comes after it."""
    monkeypatch.setattr(resolving, "NORMAL", NORMAL)
    pathlib.Path("a.example").mkdir()
    os.chown("a.example", uid, -1)
    owner = world.hosts.owner

    def slowly(directory: str) -> int:
        select.select([], [], [], 0.005)
        return owner(directory)

    world.hosts.owner = slowly  # type: ignore[method-assign]
    said = world.run(*["a.example"] * count)
    assert [(more, len(some)) for _, more, some in said] == [(True, 1)] * count + [(False, 0)]
    assert [*world.resolver._owed] == counted


def test_while_the_hosts_directory_is_held(world: World) -> None:
    """Only hosts that were reached are looked up, and whose it was is to blame."""
    pathlib.Path("a.example").mkdir()
    world.board.trouble = HELD
    now = time.monotonic_ns()
    world.board.bar({54_001: Bar(54_001, now - MINUTE, FOREVER)})
    owners = os.geteuid(), NOBODY, 54_001
    world.ask(3, *[((number, owner, 0), "a.example") for number, owner in enumerate(owners)])
    first, second, third = world.run("a.example", go=CAREFULLY)
    assert [said.reason for said in first[2] + second[2]] == ["no_socket", "owner_hangs"]
    assert second[2][0].owner == 54_001
    assert third == (5, False, [])


def test_when_the_hosts_directory_is_held_no_more(world: World) -> None:
    pathlib.Path("a.example").mkdir()
    assert world.answer("a.example", go=CAREFULLY).reason == "no_socket"


def test_what_a_look_up_has_taken() -> None:
    """Its work, but not the time in which others had the CPU; and all where it has slept."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.process_time_ns()
    while time.process_time_ns() < begun + 5_000_000:
        pass
    long_ago = 10**15
    if resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw == before.ru_nvcsw:
        assert 5_000_000 <= taken(before, long_ago) < long_ago
        assert taken(before, 2_000_000) == 2_000_000
    select.select([], [], [], 0.001)
    assert taken(before, long_ago) == long_ago
