"""The only process, as others want the first process to be: signals, who renews it
(``renewal.Owner``), and who wants to see what there is (``source.Source``)."""

import os
from collections.abc import Callable, Sequence

from sniproxy.dataplane.counts import Counts
from sniproxy.process.parcel import Parcel
from sniproxy.process.server import Server
from sniproxy.status.overview import About, Answered, Ask, Process


class Alone:
    """Has a server of its own."""

    restarts = 0

    def __init__(
        self,
        server: Server,
        about: About,
        parts: Sequence[Counts],
        stopping: Callable[[], None],
    ) -> None:
        self.about = about
        self.parts = parts
        self._server = server
        self._stopping = stopping
        self.handed_over = False

    def count(self, then: Callable[[list[int]], object]) -> None:
        then([self._server.open()])

    def hand_over(self, keep: Callable[[Parcel], None], shares: Sequence[int]) -> None:
        if not self._server.stopping:
            self.handed_over = True
            self._server.hand_over(keep, shares[0])

    def stop(self, reason: str) -> bool:
        if self._server.stopping:
            return False
        self._stopping()
        self._server.stop(reason)
        return True

    def stop_now(self, reason: str) -> None:
        self.handed_over = False
        self._server.stop_now(reason)

    # What is seen of it.

    def processes(self) -> list[Process]:
        return [Process(0, os.getpid(), self.parts[0].numbers.tolist(), answered=True)]

    def lines_lost(self) -> int:
        return 0  # its counts have them

    def refresh(self, then: Callable[[], object]) -> None:
        self._server.refresh(then)

    def page(self, ask: Ask, then: Callable[[Answered | None], object]) -> None:
        then(self._server.page(ask))
