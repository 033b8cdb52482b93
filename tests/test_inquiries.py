"""Who is asked, and what becomes of who does not answer."""

import contextlib

import pytest

from sniproxy.dataplane.counts import OPEN, Counts
from sniproxy.dataplane.timers import Later, Timers
from sniproxy.process.channel import Channel
from sniproxy.process.inquiries import PAGE, REFRESH, Inquiries
from sniproxy.process.questions import ANSWER
from sniproxy.process.worker import Worker
from sniproxy.status.overview import About, Answered, Ask
from tests.clock import Clock


class World:
    def __init__(self, later: Later | None = None) -> None:
        self.clock = Clock()
        self.pairs = [Channel.pair() for _ in range(2)]
        self.workers = {n: Worker(n, ours, n) for n, (ours, _) in enumerate(self.pairs)}
        about = About("1", "plain", [], isolate=False, started=0.0)
        parts = [Counts() for _ in range(4)]
        self.inquiries = Inquiries(about, parts, self.workers, later or self.clock.later)
        self.done = 0

    def refresh(self) -> None:
        self.inquiries.refresh(self.count)
        self.clock.advance(0)

    def count(self) -> None:
        self.done += 1

    def asked(self, number: int) -> list[str]:
        """Take what a worker is asked."""
        events = []
        try:
            while message := self.pairs[number][1].receive():
                events.append(message[0])
                self.pairs[number][1].done()
        except BlockingIOError:
            pass
        return events

    def answer(self, number: int) -> None:
        self.inquiries.heard(self.workers[number], REFRESH, {})

    def close(self) -> None:
        for pair in self.pairs:
            for one in pair:
                one.close()


def test_all_are_waited_for() -> None:
    world = World()
    world.refresh()
    assert [world.asked(0), world.asked(1)] == [[REFRESH], [REFRESH]]
    world.answer(0)
    assert world.done == 0
    world.answer(1)
    assert world.done == 1
    assert all(one.answered for one in world.inquiries.processes())
    world.close()


def test_who_comes_meanwhile_gets_what_is_asked_anew() -> None:
    world = World()
    for _ in range(5):
        world.refresh()
    assert world.asked(0) == [REFRESH]
    world.answer(0)
    world.answer(1)
    assert world.done == 1
    world.clock.advance(0)
    assert world.asked(0) == [REFRESH]
    # Who has its answer, and reads it now, is not told that nobody has answered the next one yet.
    assert all(one.answered for one in world.inquiries.processes())
    world.answer(0)
    world.answer(1)
    assert world.done == 2
    world.close()


def test_who_does_not_answer_in_time_is_shown_as_it_was() -> None:
    world = World()
    world.refresh()
    world.answer(0)
    world.clock.advance(ANSWER)
    assert world.done == 1
    assert [one.answered for one in world.inquiries.processes()] == [True, False]
    world.refresh()
    world.answer(0)
    assert [one.answered for one in world.inquiries.processes()] == [True, False]
    world.answer(1)
    assert all(one.answered for one in world.inquiries.processes())
    world.close()


def test_who_has_died_is_not_waited_for() -> None:
    world = World()
    world.inquiries.parts[1].numbers[OPEN] = 9
    world.refresh()
    world.answer(0)
    gone = world.workers.pop(1)
    world.inquiries.gone(gone)
    assert world.done == 1
    assert world.inquiries.parts[1].numbers[OPEN] == 0
    world.close()


def test_a_round_that_fails_is_concluded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each who waits is told, though memory fails for the first."""
    now, failures = [0.0], 2
    timers = Timers(lambda: now[0], lambda _: None)
    world = World(timers.later)

    def fail(*_words: object) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise MemoryError

    def wait() -> None:
        fail()
        world.count()

    def advance(seconds: float) -> None:
        now[0] += seconds
        for _ in range(5):
            with contextlib.suppress(MemoryError):
                timers.wait(0)

    monkeypatch.setattr(Worker, "tell", fail)
    world.inquiries.refresh(wait)
    world.inquiries.refresh(world.count)
    advance(0)
    assert (failures, world.done) == (1, 0)
    advance(ANSWER)
    assert (failures, world.done) == (-1, 2)
    world.inquiries.refresh(world.count)
    advance(0)
    world.answer(0)
    world.answer(1)
    assert world.done == 3
    world.close()


def test_pages() -> None:
    world = World()
    answers: list[Answered | None] = []
    for ask in (Ask(0, 0, 5), Ask(1, 0, 5), Ask(7, 0, 5)):
        world.inquiries.page(ask, answers.append)
    assert answers == [None]
    assert world.asked(1) == [PAGE]
    rows = {"rows": "{}", "many": 1, "following": -1, "number": 1}
    world.inquiries.heard(world.workers[1], PAGE, {**rows})
    world.inquiries.heard(world.workers[1], PAGE, {**rows})
    assert answers == [None, Answered("{}", 1, -1)]
    world.clock.advance(ANSWER)
    assert answers == [None, Answered("{}", 1, -1), None]
    # Others do not wait for who has not answered one, until it does.
    assert [one.answered for one in world.inquiries.processes()] == [False, True]
    world.inquiries.page(Ask(0, 0, 5), answers.append)
    assert answers[3:] == [None]
    world.inquiries.heard(world.workers[0], PAGE, {**rows, "number": 0})
    world.inquiries.page(Ask(0, 0, 5), answers.append)
    assert world.asked(0) == [PAGE, PAGE]
    world.close()
