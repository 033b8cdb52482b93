"""A resolver process, in the test's own."""

import os
import pathlib
import resource
import select
import socket
import time
from collections.abc import Iterator

import pytest

from sniproxy.process.board import FOREVER, HELD, Bar, Board
from sniproxy.process.resolving import CAREFULLY, GO, MINUTE, TOO_MUCH, Resolver, taken
from sniproxy.resolver.answer import OWNER, Answer, Outcome, answered, ask, known
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
        self.waker, woken = socket.socketpair()
        self.sockets = [self.questions, theirs, self.answers, back, self.warden, self.its]
        self.sockets += [self.waker, woken]
        self.resolver = Resolver(
            self.hosts, self.board, self.place, theirs, woken, [back], self.its
        )

    def run(self, *hosts: str, go: bytes = GO) -> list[tuple[int, Answer]]:
        """Ask, and answer all; give what was answered."""
        for number, host in enumerate(hosts):
            self.questions.send(ask(number, 0, 0, host))
        self.questions.shutdown(socket.SHUT_WR)
        self.warden.send(go)
        self.resolver.run()
        self.answers.setblocking(False)
        said = []
        while True:
            try:
                message, rights, _, _ = socket.recv_fds(self.answers, 512, 1)
            except BlockingIOError:
                return said
            for fd in rights:
                os.close(fd)
            said.append(answered(message))
            assert bool(rights) == (said[-1][1].outcome == Outcome.REACHED)


@pytest.fixture
def world(hosts: Hosts) -> Iterator[World]:
    made = World(hosts)
    yield made
    for one in made.sockets:
        one.close()


def test_one_question_after_the_other(world: World) -> None:
    pathlib.Path("a.example").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("a.example/tls-socket")
        listening.listen()
        said = world.run("a.example", "b.example")
    assert [(number, answer.outcome) for number, answer in said] == [(0, 0), (1, 1)]
    assert not world.place.since
    assert world.place.question == (0, 1)


def test_what_was_asked_before_it_is_woken_is_answered(world: World) -> None:
    """As of one that takes the place of another, which was woken for it; with the last who could
    wake it, it leaves."""
    for number in range(3):
        world.questions.send(ask(number, 0, 0, "a.example"))
    world.waker.close()
    world.warden.send(GO)
    world.resolver.run()
    assert [answered(world.answers.recv(512))[0] for _ in range(3)] == [0, 1, 2]


def test_who_is_not_needed_leaves(world: World) -> None:
    world.warden.close()
    world.resolver.run()


def test_who_was_given_up_answers_no_more(world: World) -> None:
    world.place.give_up()
    assert len(world.run("a.example", "b.example")) == 1


def test_for_another_warden_nobody_looks(world: World) -> None:
    world.board.begin()
    assert world.run("a.example", "b.example") == [(0, Answer(Outcome.AGAIN, "a.example"))]


@pytest.mark.parametrize(
    ("why", "reason"), [(0, "owner_hangs"), (1, "owner_slow"), (2, "owner_barred")]
)
def test_who_is_barred(world: World, why: int, reason: str) -> None:
    pathlib.Path("a.example").mkdir()
    mine = os.geteuid()
    world.board.bar({mine: Bar(mine, time.monotonic_ns() - MINUTE, FOREVER, why)})
    ((_, said),) = world.run("a.example")
    assert (said.outcome, said.reason, said.owner) == (Outcome.REFUSED, reason, mine)


def test_who_has_just_been_barred_may_be_waited_for(world: World) -> None:
    pathlib.Path("a.example").mkdir()
    world.board.bar({os.geteuid(): Bar(os.geteuid(), time.monotonic_ns(), FOREVER)})
    ((_, said),) = world.run("a.example")
    assert said.outcome == Outcome.MAY_PASS


def test_who_is_slow_is_told_of(world: World) -> None:
    """More than a second too much, in all; but not who is trusted."""
    world.warden.setblocking(False)
    for owner, told in ((os.geteuid(), False), (54_001, True)):
        world.place.enter(owner)
        for _ in range(3):
            world.resolver._account(TOO_MUCH * 2 // 5)
            if told:
                break
        if told:
            world.resolver._account(TOO_MUCH * 2 // 5)
            with pytest.raises(BlockingIOError):
                world.warden.recv(9)
            world.resolver._account(TOO_MUCH * 2 // 5)
            assert world.warden.recv(9) == OWNER.pack(owner)
        with pytest.raises(BlockingIOError):
            world.warden.recv(9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
@pytest.mark.parametrize("count", [1, 2])
def test_who_is_slow_again_is_counted(world: World, count: int) -> None:
    """What a process uses is asked for only where something was slow before."""
    pathlib.Path("a.example").mkdir()
    os.chown("a.example", 54_001, -1)
    owner = world.hosts.owner

    def slowly(directory: str) -> int:
        select.select([], [], [], 0.005)
        return owner(directory)

    world.hosts.owner = slowly  # type: ignore[method-assign]
    world.run(*["a.example"] * count)
    assert [*world.resolver._owed] == [54_001] * (count - 1)


def test_while_the_hosts_directory_is_held(world: World) -> None:
    """Only hosts that were reached are looked up, and whose it was is to blame."""
    pathlib.Path("a.example").mkdir()
    world.board.trouble = HELD
    now = time.monotonic_ns()
    world.board.bar({54_001: Bar(54_001, now - MINUTE, FOREVER)})
    for owner in (os.geteuid(), 54_001):
        world.questions.send(ask(7, 0, 0, known("a.example", owner)))
    first, second, third = world.run("a.example", go=CAREFULLY)
    assert first[1].reason == "no_socket"
    assert (second[1].reason, second[1].owner) == ("owner_hangs", 54_001)
    assert third == (0, Answer(Outcome.AGAIN, "a.example"))


def test_when_the_hosts_directory_is_held_no_more(world: World) -> None:
    pathlib.Path("a.example").mkdir()
    assert world.run("a.example", go=CAREFULLY)[0][1].reason == "no_socket"


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
