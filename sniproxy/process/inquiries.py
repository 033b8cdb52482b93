"""Inquiries: what the supervisor asks its workers for those who want to see what there is.

Counts need no asking, they are in memory that all share (``dataplane/counts.py``); but who is to
look at what it has open, and who lists it, is asked over its channel. Whoever does not answer in
time is shown as it was.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sniproxy.dataplane.counts import Counts
from sniproxy.dataplane.timers import Later
from sniproxy.process.channel import Fields
from sniproxy.process.questions import ANSWER, Question
from sniproxy.process.worker import Worker
from sniproxy.status.overview import About, Answered, Ask, Process

REFRESH, PAGE = "refresh", "page"
"""Messages to a worker, and its answers to them."""


class Inquiries:
    """Those of a proxy of several workers (``source.Source``)."""

    def __init__(
        self,
        about: About,
        parts: Sequence[Counts],
        workers: Mapping[int, Worker],
        later: Later,
        lines_lost: Callable[[], int] = lambda: 0,
    ) -> None:
        self.about = about
        self.parts = parts
        self.restarts = 0
        self.lines_lost = lines_lost
        self._workers = workers
        self._later = later
        self._question = Question(set())
        """Who is to look, by the part that is its own."""
        self._refreshed: list[Callable[[], object]] = []
        """Who waits for those who are awaited."""
        self._next: list[Callable[[], object]] = []
        """Who has come since they were asked."""
        self._pages: dict[int, Callable[[Answered | None], object]] = {}
        self._numbers = itertools.count()

    def processes(self) -> list[Process]:
        return [
            Process(one.number, one.pid, self.parts[one.part].numbers.tolist(), one.answers)
            for one in self._workers.values()
        ]

    def refresh(self, then: Callable[[], object]) -> None:
        if then not in self._next:
            if not self._refreshed:
                self._later(0, self._begin)
            self._next.append(then)

    def _begin(self) -> None:
        if self._refreshed or not self._next:
            return
        question = Question({one.part for one in self._workers.values()})
        # First: it concludes the round, whatever fails from here on.
        self._later(ANSWER, partial(self._expire, question))
        self._question = question
        self._refreshed, self._next = self._next, []
        for worker in self._workers.values():
            worker.tell(REFRESH)
        self._conclude()

    def _expire(self, question: Question) -> None:
        for worker in self._workers.values():
            if worker.part in question.awaited:
                worker.answers = False
        question.expire()
        self._conclude()

    def _conclude(self) -> None:
        if not self._question.awaited and self._refreshed:
            if self._next:
                self._later(0, self._begin)
            while self._refreshed:  # each stays until it was told
                self._refreshed[0]()
                del self._refreshed[0]

    def page(self, ask: Ask, then: Callable[[Answered | None], object]) -> None:
        worker = self._workers.get(ask.worker)
        if worker is None or not worker.answers:
            then(None)
            return
        number = next(self._numbers)
        self._pages[number] = then
        self._later(ANSWER, partial(self._give_up, number, worker))
        worker.tell(PAGE, number=number, first=ask.first, most=ask.most)

    def _give_up(self, number: int, worker: Worker) -> None:
        if number in self._pages:  # others who ask it do not wait as long, one after the other
            worker.answers = False
            self._give(number, None)

    def _give(self, number: int, answered: Answered | None) -> None:
        then = self._pages.pop(number, None)
        if then is not None:
            then(answered)

    def heard(self, worker: Worker, event: str, fields: Fields) -> None:
        """Act on the answer of a worker."""
        worker.answers = True
        if event == REFRESH:
            self._question.awaited.discard(worker.part)
            self._conclude()
        else:
            rows = Answered(str(fields["rows"]), int(fields["many"]), int(fields["following"]))
            self._give(int(fields["number"]), rows)

    def gone(self, worker: Worker) -> None:
        """Wait no more for one that has ended."""
        self.parts[worker.part].leave()
        self._question.awaited.discard(worker.part)
        self._conclude()
