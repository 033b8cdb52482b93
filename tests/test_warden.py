"""What the warden decides; tests/faults/test_hanging_lookups.py has it keep real processes."""

import os
import socket
import time
from collections.abc import Iterator

import pytest

from sniproxy.process.board import FOREVER, HELD, SLOW, Board
from sniproxy.process.resolving import CAREFULLY, MINUTE
from sniproxy.process.warden import HANGS, Warden, _Child
from sniproxy.resolver.answer import OWNER, Answer, Outcome, answered, as_answer
from sniproxy.resolver.hosts import Hosts

STRANGER = 54_001


class World:
    """A warden whose resolver at work is a process that only waits to be ended."""

    def __init__(self, hosts: Hosts) -> None:
        pair = lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # noqa: E731
        self.hosts = hosts
        self.board = Board()
        self.answers, answers = pair()
        self.bell, bell = pair()
        questions, life = pair()
        self.sockets = [self.answers, answers, self.bell, bell, questions, life]
        self.warden = Warden(self.hosts, self.board, questions, [answers], bell, life)

    def at_work(self, number: int = 0) -> _Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = _Child(number, ours)
        child.pid = os.fork()
        if not child.pid:
            ours.close()
            theirs.recv(1)
            os._exit(0)
        theirs.close()
        self.warden._children[ours.fileno()] = child
        self.warden._poll.register(ours.fileno(), 1)
        self.warden._active = child
        return child

    def hang(self, child: _Child, owner: int | None) -> None:
        """Have it hang in an entry of an owner's, and somebody tell the warden."""
        place = self.board.place(child.number)
        place.clear()
        place.take(0, 70)
        place.begin(77)
        if owner is not None:
            place.enter(owner)
        place._numbers[0] = time.monotonic_ns() - HANGS
        self.warden._look()

    def told(self) -> tuple[int, int, Answer]:
        """Give what it has told: to which message, about which question."""
        sent, more, heads, texts = answered(self.answers.recv(512))
        assert not more
        (head,) = heads
        return sent, head[0], as_answer(head, texts)

    def end(self, child: _Child) -> None:
        child.socket.shutdown(socket.SHUT_RDWR)
        self.warden._hear(child)


@pytest.fixture
def world(hosts: Hosts) -> Iterator[World]:
    made = World(hosts)
    yield made
    for one in made.sockets:
        one.close()


def test_one_that_hangs_is_given_up(world: World) -> None:
    child = world.at_work()
    world.hang(child, STRANGER)
    assert world.board.place(0).given_up
    bar = world.board.barred(STRANGER)
    assert bar is not None
    assert bar.until == FOREVER
    sent, number, said = world.told()
    assert (sent, number, said.outcome, said.owner) == (70, 77, Outcome.MAY_PASS, STRANGER)
    world.end(child)
    assert world.board.barred(STRANGER) is None


def test_one_that_is_at_work_is_left_alone(world: World) -> None:
    child = world.at_work()
    world.board.place(0).begin(77)
    world.warden._look()
    assert not world.board.place(0).given_up
    world.end(child)


def test_who_hangs_twice_in_a_minute(world: World) -> None:
    """Then it is barred for a minute, unless everybody's hosts are that owner's."""
    for owner, barred in ((STRANGER, True), (0, False)):
        for _ in range(2):
            child = world.at_work()
            world.hang(child, owner)
            world.end(child)
        bar = world.board.barred(owner)
        assert (bar is not None) == barred
        if bar is not None:
            assert 0 < bar.until - time.monotonic_ns() <= MINUTE


def test_who_is_slow_is_barred_for_a_minute(world: World) -> None:
    child = world.at_work()
    with socket.socket(fileno=os.dup(child.socket.fileno())) as copy:
        assert copy.family == socket.AF_UNIX
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(OWNER.pack(STRANGER))
    world.warden._hear(_Child(5, ours))
    ours.close()
    theirs.close()
    bar = world.board.barred(STRANGER)
    assert bar is not None
    assert bar.why == SLOW
    world.end(child)


def test_where_nobody_knows_the_owner_the_next_is_to_be_careful(world: World) -> None:
    child = world.at_work()
    world.hang(child, None)
    assert world.board.trouble == HELD
    sent, number, said = world.told()
    assert (sent, number, said.outcome) == (70, 77, Outcome.AGAIN)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    world.warden._spare = world.warden._active = _Child(1, ours)
    world.warden._active = None
    world.warden._not_before = time.monotonic() + 99
    world.warden._keep()
    assert theirs.recv(9) == CAREFULLY
    assert world.board.trouble == HELD
    ours.close()
    theirs.close()
    world.end(child)
    assert not world.board.trouble


def test_what_one_that_died_was_asked_is_to_be_asked_again(world: World) -> None:
    child = world.at_work()
    world.board.place(0).take(0, 70)
    world.board.place(0).begin(78)
    world.end(child)
    sent, number, said = world.told()
    assert (sent, number, said.outcome) == (70, 78, Outcome.AGAIN)


def test_one_that_dies_with_nothing_to_do(world: World) -> None:
    child = world.at_work()
    world.board.place(0).take(0, 70)
    world.board.place(0).begin(78)
    world.board.place(0).done()
    world.end(child)
    world.answers.setblocking(False)
    with pytest.raises(BlockingIOError):
        world.told()
