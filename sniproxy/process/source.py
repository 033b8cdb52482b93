"""The source of what can be seen: the first process of the proxy, whoever asks it."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from sniproxy.dataplane.counts import totals
from sniproxy.log.log import Log
from sniproxy.status.overview import Answered, Ask, Proxy


class Source(Proxy, Protocol):
    """The first process of the proxy."""

    def refresh(self, then: Callable[[], object]) -> None:
        """Have all processes look at what they have open, and call ``then``, within a second or so:
        once, however often that was asked for since they began to look."""

    def page(self, ask: Ask, then: Callable[[Answered | None], object]) -> None:
        """Have a process list what it has open, and call ``then``, likewise: with None where it
        has not answered."""


def tell_totals(source: Source, log: Log) -> Callable[[], object]:
    """Make what SIGUSR1 calls: it logs what has been counted since the start, whatever the
    level."""

    def tell() -> None:
        log.reply("totals", **totals(source.parts))

    return partial(source.refresh, tell)
