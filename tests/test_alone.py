"""The only process, as those see it who stop it, renew it and ask it."""

import os
from typing import Any

import pytest

from sniproxy.dataplane.counts import ACCEPTED, Counts
from sniproxy.process.alone import Alone
from sniproxy.status.overview import About, Answered, Ask, Process

ANSWERED = Answered("", 0, -1)


class Serving:
    """What a server is asked to do, in one's own process."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.stopping = False

    def open(self) -> int:
        return 3

    def hand_over(self, keep: object, most: int) -> None:
        self.asked.append(("hand_over", keep, most))

    def stop(self, reason: str) -> None:
        self.asked.append(("stop", reason))
        self.stopping = True

    def stop_now(self, reason: str) -> None:
        self.asked.append(("stop_now", reason))

    def refresh(self, then: object) -> None:
        self.asked.append(("refresh", then))

    def page(self, ask: Ask) -> Answered:
        self.asked.append(("page", ask))
        return ANSWERED


@pytest.fixture
def serving() -> Serving:
    return Serving()


@pytest.fixture
def stopped() -> list[bool]:
    """One item for each time that others were told of the stop: whether it had begun already."""
    return []


@pytest.fixture
def alone(serving: Serving, stopped: list[bool]) -> Alone:
    about = About("1.2.3", "plain", [], isolate=False, started=0)
    counts = Counts()
    counts.numbers[ACCEPTED] = 5
    server: Any = serving
    return Alone(server, about, [counts], lambda: stopped.append(serving.stopping))


def test_it_stops_once(alone: Alone, serving: Serving, stopped: list[bool]) -> None:
    assert alone.stop("SIGHUP")
    assert not alone.stop("SIGTERM")
    alone.stop_now("SIGTERM")
    assert (serving.asked, stopped) == ([("stop", "SIGHUP"), ("stop_now", "SIGTERM")], [False])


def test_it_is_handed_over_unless_it_stops(alone: Alone, serving: Serving) -> None:
    counts: list[int] = []
    alone.count(counts.extend)
    alone.hand_over(print, counts)
    assert (alone.handed_over, serving.asked) == (True, [("hand_over", print, 3)])
    # Who can't wait for that loses what is open.
    alone.stop_now("SIGINT")
    assert not alone.handed_over
    alone.stop("SIGHUP")
    alone.hand_over(print, counts)
    assert (alone.handed_over, serving.asked[3:]) == (False, [])


def test_what_is_seen_of_it(alone: Alone, serving: Serving) -> None:
    assert alone.processes() == [Process(0, os.getpid(), alone.parts[0].numbers.tolist(), True)]
    assert alone.processes()[0].counts[ACCEPTED] == 5
    assert (alone.restarts, alone.lines_lost()) == (0, 0)
    answered: list[Answered | None] = []
    alone.refresh(print)
    alone.page(Ask(0, 5, 10), answered.append)
    assert (answered, serving.asked) == ([ANSWERED], [("refresh", print), ("page", Ask(0, 5, 10))])
