"""The source of what can be seen: the first process of the proxy, whoever asks it."""

from collections.abc import Callable
from typing import Protocol

from sniproxy.dataplane.counts import totals
from sniproxy.log.log import Log
from sniproxy.status.overview import Answered, Ask, Proxy


class Source(Proxy, Protocol):
    """The first process of the proxy."""

    def refresh(self, then: Callable[[], object]) -> None:
        """Have all processes look at what they have open, and call ``then``, within a second or
        so."""

    def page(self, ask: Ask, then: Callable[[Answered | None], object]) -> None:
        """Have a process list what it has open, and call ``then``, likewise: with None where it
        has not answered."""


def tell_totals(source: Source, log: Log) -> None:
    """Log what has been counted since the start, whatever the level: SIGUSR1 asks for it."""
    source.refresh(lambda: log.reply("totals", **totals(source.parts)))
