"""The list of what is open, in pages, for who wants to see it."""

from itertools import count
from typing import NamedTuple

from sniproxy.dataplane.address import address_text
from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.farewell import Farewell
from sniproxy.dataplane.poller import Watcher
from sniproxy.dataplane.relay import End
from sniproxy.dataplane.shares import address_of
from sniproxy.dataplane.stream import idle
from sniproxy.resolver.naming import directory_name

SLICE = 1000
"""Descriptors looked at for one page."""


class Seen(NamedTuple):
    """An open connection: its client's address, the directory of its host and its state, for how
    many seconds it has been here and idle (None: nobody knows), and its bytes each way."""

    client: str
    host: str
    state: str
    age: float | None
    idle: float | None
    up: int
    down: int


def page(connections: Connections, first: int, most: int) -> tuple[list[Seen], int]:
    """List at most so many connections, from the one of the ``first`` descriptor on; give them and
    the descriptor to go on from, -1 where none is left."""
    found: list[Seen] = []
    watchers = connections.poller.some(first, SLICE)
    for fd, watcher in zip(count(first), watchers):
        if len(found) == most:
            return found, fd
        seen = None if watcher is None else _seen(connections, watcher)
        if seen is not None:
            found.append(seen)
    return found, first + SLICE if len(watchers) == SLICE else -1


def _seen(connections: Connections, watcher: Watcher) -> Seen | None:
    now = connections.clock()
    if isinstance(watcher, Arrival):
        state = "hello" if watcher.undecided else "waiting"
        # Only a name that it waits for is one that is there.
        host = "" if watcher.undecided else directory_name(watcher.entry)
        age = now - watcher.accepted_at
        return Seen(address_text(watcher.client_address()), host, state, age, None, 0, 0)
    try:
        if isinstance(watcher, Farewell):
            return Seen(address_text(watcher.client_address()), "", "leaving", None, None, 0, 0)
        if not isinstance(watcher, End) or not watcher.of_client or not hasattr(watcher, "peer"):
            return None
        client = address_text(address_of(watcher, watcher.socket))
        milliseconds = idle(watcher.socket)
    except OSError:  # about to be over
        return None
    accepted_at = getattr(watcher, "accepted_at", None)
    return Seen(
        client,
        getattr(watcher, "host", ""),
        "half_closed" if watcher.ended or watcher.peer.ended else "relaying",
        None if accepted_at is None else now - accepted_at,
        None if milliseconds is None else milliseconds / 1000,
        watcher.moved,
        watcher.peer.moved,
    )
