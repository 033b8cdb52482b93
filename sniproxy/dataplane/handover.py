"""Handing connections over: all that is open here goes on in another process, byte for byte.

Nothing waits for a peer. A connection is given up here only after its message has been put; until
then it goes on as before.
"""

import functools
from collections.abc import Callable, Sequence
from socket import SocketType
from typing import TypeGuard

from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.farewell import Farewell
from sniproxy.dataplane.poller import Watcher
from sniproxy.dataplane.relay import End
from sniproxy.dataplane.state import MOST, Arriving, Carried, Direction, Relayed
from sniproxy.resolver.proxy_header import SocketAddress

MESSAGES_AT_LEAST = 8
"""Messages that a process's connections are shared out to, so that several workers get of few."""

Put = Callable[[Sequence[Carried]], None]
"""Take up to ``MOST`` connections, and raise OSError if not."""


def hand_over(connections: Connections, put: Put, most: int) -> int:
    """Give connections away, at most as many as have ``most`` descriptors; say how many they were.

    Raises OSError where ``put`` does: that message's and the rest stay here.
    """
    leaving = [one for one in connections.poller.watchers() if _has_client(one)]
    size = min(MOST, len(leaving) // MESSAGES_AT_LEAST + 1)
    count = 0
    while leaving:
        message: list[Carried] = []
        some = leaving[-size:]
        message = [_carried(one) for one in some]
        # Each message may have a memory file besides.
        most -= sum(len(one.sockets) for one in message) + 1
        if most < 0:
            break
        put(message)
        for one in some:
            if isinstance(one, End):
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


def _carried(watcher: Arrival | Farewell | End) -> Carried:
    if not isinstance(watcher, End):
        return watcher.carried()
    backend = watcher.peer
    up, down = watcher.waiting(), backend.waiting()
    record = watcher.record
    state = Relayed(
        _address(watcher.socket) if record is None else record.address,
        record.host if record else "",
        record.accepted_at if record else 0.0,
        (record and record.decided_at) or 0.0,
        Direction(watcher.moved, watcher.ended, len(up)),
        Direction(backend.moved, backend.ended, len(down)),
    )
    return Carried(state, [watcher.socket, backend.socket], up + down)


def _address(client: SocketType) -> SocketAddress:
    try:
        address: SocketAddress = client.getpeername()
    except OSError:
        return None
    return address


def adopt(connections: Connections, carried: Carried) -> None:
    """Go on with a connection of another process. Where that raises anything, it has ended."""
    client = carried.sockets[0]
    try:
        connections.totals.clients.add(client)
        _go_on(connections, client, carried)
    except Exception:
        for one in carried.sockets:
            connections.poller.forget(one.fileno())
            one.close()
        connections.close(client)
        raise


def _go_on(connections: Connections, client: SocketType, carried: Carried) -> None:
    state = carried.state
    if isinstance(state, Arriving):
        arrival = Arrival(connections, client, state.address, state.accepted_at)
        connections.poller.guard(arrival, functools.partial(arrival.go_on, carried.unsent))
    elif isinstance(state, Relayed):
        record = None
        if connections.log.connections:
            accepted_at = state.accepted_at or connections.clock()
            record = Arrival(connections, client, state.address, accepted_at)
            record.host, record.decided_at = state.host, state.decided_at or None
        _relay(connections, carried, state, record)
    else:
        Farewell(connections, client, limit=state.left, watched=False).begin()


def _relay(
    connections: Connections, carried: Carried, state: Relayed, record: Arrival | None
) -> None:
    """Relay on from where the other process was."""
    relay = connections.relay
    client, backend = carried.sockets
    end = relay.join(client, backend, record, watched=False)
    up, down = carried.unsent[: state.up.unsent], carried.unsent[state.up.unsent :]
    for one, direction, unsent in ((end, state.up, up), (end.peer, state.down, down)):
        one.moved, one.ended = direction.moved, direction.ended
        if direction.ended:
            one.reading = False
            relay.leaving.start(end)
        elif unsent:
            one.hold(unsent)
