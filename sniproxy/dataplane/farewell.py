"""A farewell: the orderly close of a client's socket, so that what was sent to it arrives."""

from socket import MSG_DONTWAIT, SHUT_WR, SocketType

from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.counts import DOWN, UP
from sniproxy.dataplane.relay import BUFFER_SIZE, SEND_TIMEOUT, End
from sniproxy.dataplane.state import Carried, Leaving
from sniproxy.dataplane.stream import queued
from sniproxy.parser.proxy_header import SocketAddress

FAREWELL_BYTES = 64 * 1024
"""Bytes of a refused client that are read and thrown away before we close all the same."""

_READS_A_TURN = 8

_AT_ONCE = ("stopped", "fault", "idle", "outbid")
"""Endings without a farewell: who has been idle for so long takes nothing that it could save, and
who is outbid is to leave the descriptor."""


def part(connections: Connections, end: End, how: str, down: int, sending: bool) -> None:
    """Close the client's socket of a relayed connection (``connections.Part``)."""
    # Where anything fails this comes again, so that what was done is marked as done.
    if end.record is not None:
        end.record.log_end(how, end.moved, down)
        end.record = None
    row, told = end.row, connections.told
    up, down = row[UP] + end.moved, row[DOWN] + down
    if told and end in told:
        up, down = up - told[end][0], down - told[end][1]
        del told[end]
    row[UP], row[DOWN] = up, down
    end.moved = end.peer.moved = 0
    if sending and how not in _AT_ONCE:
        Farewell(connections, end.socket, limit=None, watched=True).begin()
        return
    connections.close(end.socket)


class Farewell:
    """The orderly close of a client's socket.

    A close with unread bytes would reset the connection (RFC 2525 section 2.17), and the client
    might lose what was sent to it last. So: shut down writing, read and discard until the client
    has closed or its time is up, close. Of a refused client at most ``limit`` bytes are read,
    within ``FAREWELL_PATIENCE``; a relayed one (None) may send what it likes for as long as it
    takes what the kernel still holds for it.
    """

    __slots__ = ("_connections", "_left", "_socket", "_watched")

    def __init__(
        self, connections: Connections, client: SocketType, *, limit: int | None, watched: bool
    ) -> None:
        self._connections = connections
        self._socket = client
        self._left = limit
        self._watched = watched

    def begin(self, *, linger: bool = True) -> None:
        """Shut down writing; wait for the client to close, unless not to ``linger``."""
        try:
            self._socket.shutdown(SHUT_WR)
        except OSError:
            self.close()
            return
        connections = self._connections
        if self._discard() or not linger:
            self.close()
            return
        connections.poller.watch(self._socket.fileno(), self, watched=self._watched)
        # Last: where anything fails, who began this closes the socket, and knows of nothing else.
        if self._left is None:
            connections.relay.leaving.start(self)
        else:
            connections.part(self)

    def ready(self, mask: int) -> None:  # noqa: ARG002 - a read tells all
        if self._discard():
            self.close()

    def resume(self) -> None:
        if self._socket.fileno() >= 0 and self._discard():
            self.close()

    def abandon(self) -> None:
        self.close()

    def stop(self) -> bool:
        self.close()
        return True

    # From one process to the next.

    def carried(self) -> Carried:
        """Give what another process needs to go on with it."""
        return Carried(Leaving(self._left), [self._socket], b"")

    def part(self) -> None:
        """Give the socket up without closing the connection: another process has a copy."""
        self._connections.poller.unwatch(self._socket.fileno())
        self.close()

    def client_address(self) -> SocketAddress:
        """Give the address of the connection. Raises OSError where it has gone."""
        address: SocketAddress = self._socket.getpeername()
        return address

    # What is asked of a relayed client's farewell.

    def taken(self) -> int:
        return -queued(self._socket)

    def patience(self) -> float:
        return SEND_TIMEOUT

    def expire(self) -> None:
        self.close()

    def evict(self) -> None:
        self.close()

    def _discard(self) -> bool:
        """Read what is there; say whether that was the end."""
        relay = self._connections.relay
        for _ in range(_READS_A_TURN):
            room = BUFFER_SIZE if self._left is None else self._left
            if not room:
                return True
            try:
                size = self._socket.recv_into(relay.buffer, min(room, BUFFER_SIZE), MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not size:
                return True
            if self._left is not None:
                self._left -= size
        self._connections.poller.again(self)
        return False

    def close(self) -> None:
        """Close the client's socket, whatever it still sends."""
        self._connections.farewells.stop(self)
        self._connections.relay.leaving.stop(self)
        self._connections.close(self._socket)
