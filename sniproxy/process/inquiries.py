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
from sniproxy.process.worker import Worker
from sniproxy.status.overview import About, Answered, Ask, Process

REFRESH, PAGE = "refresh", "page"
"""Messages to a worker, and its answers to them."""

TOTALS = "totals"
"""The event of a line that SIGUSR1 asks for."""

ANSWER = 1.0
"""Seconds that a worker has to answer."""


class Inquiries:
    """Those of a proxy of several workers (``status.Source``)."""

    def __init__(
        self, about: About, parts: Sequence[Counts], workers: Mapping[int, Worker], later: Later
    ) -> None:
        self.about = about
        self.parts = parts
        self.restarts = 0
        self.lost: Callable[[], int] = lambda: 0
        self._workers = workers
        self._later = later
        self._round = 0
        self._awaited: set[int] = set()
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

    def lines_lost(self) -> int:
        return self.lost()

    def refresh(self, then: Callable[[], object]) -> None:
        self._next.append(then)
        if not self._refreshed:
            self._later(0, self._begin)

    def _begin(self) -> None:
        if self._refreshed or not self._next:
            return
        self._refreshed, self._next = self._next, []
        self._awaited = set()
        self._round += 1
        for worker in self._workers.values():
            worker.answers = False
            self._awaited.add(worker.part)
            worker.tell(REFRESH)
        self._later(ANSWER, partial(self._expire, self._round))
        self._conclude()

    def _expire(self, number: int) -> None:
        if number == self._round:
            self._awaited.clear()
            self._conclude()

    def _conclude(self) -> None:
        if not self._awaited and self._refreshed:
            if self._next:
                self._later(0, self._begin)
            refreshed, self._refreshed = self._refreshed, []
            for then in refreshed:
                then()

    def page(self, ask: Ask, then: Callable[[Answered | None], object]) -> None:
        number = next(self._numbers)
        self._pages[number] = then
        self._later(ANSWER, partial(self._give, number, None))
        worker = self._workers.get(ask.worker)
        if worker is not None:
            worker.tell(PAGE, number=number, first=ask.first, most=ask.most)
        else:
            self._give(number, None)

    def _give(self, number: int, answered: Answered | None) -> None:
        then = self._pages.pop(number, None)
        if then is not None:
            then(answered)

    def heard(self, worker: Worker, event: str, fields: Fields) -> None:
        """Act on the answer of a worker."""
        worker.answers = True
        if event == REFRESH:
            self._awaited.discard(worker.part)
            self._conclude()
        else:
            rows = Answered(str(fields["rows"]), int(fields["many"]), int(fields["following"]))
            self._give(int(fields["number"]), rows)

    def gone(self, worker: Worker) -> None:
        """Wait no more for one that has ended."""
        self.parts[worker.part].leave()
        self._awaited.discard(worker.part)
        self._conclude()
