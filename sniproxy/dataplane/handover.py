"""Handing connections over: all that is open here goes on in another process, byte for byte.

Nothing waits for a peer. A connection is given up here only after its message has been put; until
then it goes on as before.
"""

import errno
import functools
import os
from collections.abc import Callable, Sequence
from socket import SocketType
from sys import intern
from typing import TypeGuard

from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.counts import ADOPTED
from sniproxy.dataplane.farewell import Farewell
from sniproxy.dataplane.isolated import arrival_kind
from sniproxy.dataplane.poller import Watcher
from sniproxy.dataplane.relay import End
from sniproxy.dataplane.state import MOST, Arriving, Carried, Direction, Leaving, Relayed
from sniproxy.parser.proxy_header import SocketAddress

MESSAGES_AT_LEAST = 8
"""Messages that a process's connections are shared out to, so that several workers get of few."""

Put = Callable[[Sequence[Carried]], None]
"""Take up to ``MOST`` connections, and raise OSError if not."""


def hand_over(connections: Connections, put: Put, most: int) -> int:
    """Give connections away, at most as many as have ``most`` descriptors; say how many they were.

    Raises OSError where ``put`` does: that message's and the rest stay here.
    """
    leaving = [one for one in connections.poller.watchers() if _has_client(one)]
    # Taken from the end: arrivals first, the oldest of them before all, so that those who wait in a
    # line find each other in that order.
    leaving.sort(key=_age)
    size = min(MOST, len(leaving) // MESSAGES_AT_LEAST + 1)
    count = 0
    while leaving:
        some = leaving[: -size - 1 : -1]
        message = [carried_by(one) for one in some]
        for one in some:
            if isinstance(one, End):
                # Where it goes on, this is taken to be counted, be it here again.
                connections.count(one)
        # Each message may have a memory file besides.
        most -= sum(len(one.sockets) for one in message) + 1
        if most < 0:
            break
        put(message)
        for one in some:
            if isinstance(one, End):
                connections.told.pop(one, None)
                connections.relay.part(one)
                connections.close(one.socket)
            else:
                one.part()
        del leaving[-size:]
        count += len(some)
    return count


def _has_client(watcher: Watcher) -> "TypeGuard[Arrival | Farewell | End]":
    return isinstance(watcher, Arrival | Farewell) or (
        isinstance(watcher, End) and watcher.of_client
    )


def _age(watcher: Watcher) -> float:
    return -watcher.accepted_at if isinstance(watcher, Arrival) else float("-inf")


def carried_by(watcher: Arrival | Farewell | End) -> Carried:
    """Give what another process needs to go on with it: a relayed one's by its client's end."""
    if not isinstance(watcher, End):
        return watcher.carried()
    backend = watcher.peer
    up, down = watcher.waiting(), backend.waiting()
    record = watcher.record
    state = Relayed(
        record.client_address() if record else None,
        record.host if record else "",
        getattr(watcher, "accepted_at", 0.0),
        (record and record.decided_at) or 0.0,
        Direction(watcher.moved, watcher.ended, len(up)),
        Direction(backend.moved, backend.ended, len(down)),
        getattr(watcher, "host", ""),
    )
    return Carried(state, [watcher.socket, backend.socket], up + down)


def _address(client: SocketType) -> SocketAddress:
    try:
        address: SocketAddress = client.getpeername()
    except OSError:
        return None
    return address


def _bare(address: SocketAddress) -> object:
    """Give of an address what a state has kept of it: not the name of an interface."""
    return (address[0].partition("%")[0], address[1]) if isinstance(address, tuple) else address


class _Announced(Arrival):
    """The record of a client that a balancer has announced: the header has gone with the process
    that has read it."""

    __slots__ = ()

    def local_address(self) -> SocketAddress:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))


def adopt(connections: Connections, carried: Carried) -> bool:
    """Go on with a connection of another process; say whether that worked."""
    client = carried.sockets[0]
    try:
        connections.totals.clients.add(client)
        connections.counts.numbers[ADOPTED] += 1
        return _go_on(connections, client, carried)
    except Exception as error:  # one connection ends here, no more
        for one in carried.sockets:
            connections.close(one)
        connections.fault(error)
        return False


def _go_on(connections: Connections, client: SocketType, carried: Carried) -> bool:
    """Make of it what it was. Whatever fails then is the end of one that knows how to end."""
    guard, state = connections.poller.guard, carried.state
    if isinstance(state, Leaving):
        farewell = Farewell(connections, client, limit=state.left, watched=False)
        return guard(farewell, farewell.begin)
    if isinstance(state, Arriving):
        kind = arrival_kind(connections, announced=state.announced)
        arrival = kind(connections, client, state.address, state.accepted_at)
        return guard(arrival, functools.partial(arrival.go_on, carried.unsent))
    record, accepted_at = None, state.accepted_at or connections.clock()
    noted = state.host or isinstance(state.address, tuple)
    if noted or connections.log.connections:
        # Where nobody has noted who it is, its socket is asked.
        own = _address(client)
        address = state.address if noted else own
        kind = Arrival if _bare(address) == _bare(own) else _Announced
        record = kind(connections, client, address, accepted_at)
        record.host, record.decided_at = state.host, state.decided_at or None
    counts, directory = connections.counts, state.directory
    row = counts.hosts.get(directory) if directory else counts.hosts.first
    if row is None:
        row = counts.host(directory, connections.account(directory))
    end = connections.relay.join(client, carried.sockets[1], record, watched=False)
    end.row, end.accepted_at = row, accepted_at
    if directory:
        end.host = intern(directory)
    # They were counted there.
    connections.told[end] = state.up.moved, state.down.moved
    if record is not None and connections.log.connections:
        connections.hourly.start(record)
    return guard(end, functools.partial(relay_on, end, state, carried.unsent))


def relay_on(client: End, state: Relayed, unsent: bytes) -> None:
    """Relay on from where the other process was."""
    up, down = unsent[: state.up.unsent], unsent[state.up.unsent :]
    for end, direction, held in ((client, state.up, up), (client.peer, state.down, down)):
        end.moved, end.ended = direction.moved, direction.ended
        if direction.ended:
            end.reading = False
            client.relay.leaving.start(client)
        elif held:
            end.hold(held)
