"""The relay: bytes both ways between a client and its backend until both directions have ended.

A relayed connection is two ``End`` objects that know each other, and nothing else: no task, no
transport, no buffer of its own. All share one buffer; only what a short write leaves is kept, and
then that direction is not read again until it has been taken (back pressure). Events are
edge-triggered, so each ``pump`` says in its code why no further event is needed.

This is the hot path and is written for speed. Per direction the cheapest way was measured
(docs/explanation/design.md): copying through one large buffer, and for large uploads splice(2)
through a pipe, at a third of the cost of the copy.
"""

import os
import select
from collections.abc import Callable
from socket import AF_UNIX, MSG_DONTWAIT, SHUT_WR, SocketType
from typing import Final

from sniproxy.dataplane.counts import Numbers
from sniproxy.dataplane.ending import CLIENT_LOST, lost, pending
from sniproxy.dataplane.pipes import BULK, MAX_PIPES, Pipe, Pipes
from sniproxy.dataplane.poller import ERROR, GONE, HANG_UP, READ, WRITE, Poller, hang_up
from sniproxy.dataplane.record import Record
from sniproxy.dataplane.stream import queued
from sniproxy.dataplane.sweep import Leaving
from sniproxy.dataplane.timers import Later

BUFFER_SIZE: Final = 256 * 1024
"""Bytes of one read, and so the most that a connection may have waiting in each direction."""

CHUNKS_A_TURN: Final = 8
"""Reads in a row before other connections have their turn: at most 2 MiB, some 0.6 ms."""

SPLICES_A_TURN: Final = 4
"""The same for splices, of up to PIPE_SIZE each."""

HALF_CLOSED_IDLE: Final = 600.0
"""Seconds without a byte after one direction has ended, while nothing waits to be taken."""

SEND_TIMEOUT: Final = 60.0
"""Seconds in which no byte is taken of those that wait, here or in the kernel, once a side has said
that it sends no more; and seconds without a byte once a side is not there at all any more. (nginx's
``send_timeout``.)"""

_LEAVING_SWEEP: Final = 15.0

FLOWING: Final = 0
FINISHED: Final = 1
SEVERED: Final = 2
OVER: Final = 3
"""How far a direction is: it goes on, its end of stream was passed on, it was given up, or the
whole connection has been closed."""

_CHUNKS: Final = range(CHUNKS_A_TURN)
_DONT_WAIT: Final = int(MSG_DONTWAIT)
_UNIX: Final = int(AF_UNIX)
_NOBODY: Final = select.EPOLLHUP | select.EPOLLERR

_SPLICE_FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Relay:
    """What all relayed connections of a process share.

    ``ended`` is called once for every connection, with its client's end, one word for how it
    ended, the bytes that went to the client, and whether the client may still be sending; it owns
    the client's socket from then on, the backend's is closed.
    """

    def __init__(
        self,
        poller: Poller,
        ended: "Callable[[End, str, int, bool], None]",
        clock: Callable[[], float],
        later: Later,
        workers: int = 1,
    ) -> None:
        self.poller = poller
        self.buffer = bytearray(BUFFER_SIZE)
        self.view = memoryview(self.buffer)
        self.pipes = Pipes(max(1, MAX_PIPES // workers))
        self.leaving = Leaving(
            later, _LEAVING_SWEEP, clock, lambda one: poller.guard(one, one.expire)
        )
        """The client's end of each connection of which one side is known to send no more, and who
        is sent its last bytes after that."""
        self._ended = ended

    def join(
        self, client: SocketType, backend: SocketType, record: Record | None, *, watched: bool
    ) -> "End":
        """Start relaying between two connected sockets, both handed over.

        ``watched`` says that the poller has the client already; then its events up to now are
        gone, and it must be pumped. Raises OSError where the poller can't take both; then, as after
        any other exception, the backend is closed.
        """
        client_end = End(self, client, record, True)
        backend_end = End(self, backend, record, False)
        client_end.peer = backend_end
        backend_end.peer = client_end
        try:
            self.poller.watch(backend.fileno(), backend_end)
            self.poller.watch(client.fileno(), client_end, watched=watched)
        except Exception:
            # The client is still the caller's.
            self.poller.forget(backend.fileno())
            backend.close()
            del client_end.peer, backend_end.peer
            raise
        return client_end

    def part(self, client: "End") -> None:
        """Give both sockets up without ending the connection: another process has copies. The
        client's is still to be closed."""
        self.leaving.stop(client)
        for end in (client, client.peer):
            end.reading = False
            end.ended = OVER
            end.unsent = None
            # Our registration would live as long as the copy.
            self.poller.unwatch(end.socket.fileno())
        client.peer.socket.close()
        del client.peer.peer, client.peer

    def end(self, client: "End", how: str) -> None:
        """Close the backend's side and hand the client's on. Begun again, it goes on."""
        backend = client.peer
        sending = client.ended != FINISHED and how not in CLIENT_LOST
        for end in (client, backend):
            end.reading = False
            end.ended = OVER
            end.unsent = None
            end.drop_pipe()
        self.leaving.stop(client)
        self.poller.forget(backend.socket.fileno())
        backend.socket.close()
        self._ended(client, how, backend.moved, sending)
        # The two ends hold each other; without this they would wait for the garbage collector.
        del client.peer, backend.peer


class End:
    """One end of a relayed connection, and the direction that leads away from it.

    ``moved`` counts the bytes read here and taken by the peer, ``unsent`` or ``pipe`` holds those
    that it has not taken yet, ``reading`` says that we may read here now, ``ended`` how far this
    direction is, ``bulk`` counts large reads in a row, ``of_client`` whether this is the client's
    end, ``stops_short`` whether a read may leave something though it did not fill the buffer, and
    ``record`` is what the log wants to know when the connection ends. A client's end may have the
    directory of its ``host``; it has the ``row`` that it is counted in, and when it was
    ``accepted_at``. (One class for both
    ends: with two, the interpreter would find each attribute anew at every change of ends, which
    took a fifth of its instructions.)
    """

    __slots__ = (
        "accepted_at",
        "bulk",
        "ended",
        "host",
        "moved",
        "of_client",
        "peer",
        "pipe",
        "reading",
        "record",
        "relay",
        "row",
        "socket",
        "stops_short",
        "unsent",
    )

    peer: "End"
    host: str
    row: Numbers
    accepted_at: float

    def __init__(
        self, relay: Relay, socket: SocketType, record: Record | None, of_client: bool
    ) -> None:
        self.relay = relay
        self.socket = socket
        self.record = record
        self.of_client = of_client
        self.moved = 0
        self.unsent: bytes | None = None
        self.pipe: Pipe | None = None
        self.reading = True
        self.ended = FLOWING
        self.bulk = 0
        # Where credentials are passed, or descriptors, a read ends with the messages of one sender.
        # A listener may ask for them; of a backend we do not, see ``hosts.Hosts.connect``.
        self.stops_short = of_client and socket.family == _UNIX

    def client(self) -> "End":
        """Give the client's end of this connection."""
        return self if self.of_client else self.peer

    def gone(self, error: int | None = None) -> str:
        """Say how the log calls a connection that this end has reset, or lost by an error."""
        return lost("client" if self.of_client else "backend", error)

    def failed(self, error: int) -> None:
        """Act on an error of this socket while we were not reading it.

        Without a client there is nobody to deliver to. What a backend wrote before still reaches
        its client; only the direction to the backend is given up.
        """
        if self.of_client:
            self.broken(error)
        elif not self.peer.ended:
            self.peer.sever()

    def waiting(self) -> bytes:
        """Give what the peer has not taken yet, out of the pipe where it is in one."""
        if self.pipe is not None:
            self.unsent = self.taken_out(self.pipe)
        return self.unsent or b""

    def taken_out(self, pipe: Pipe) -> bytes:
        """Give what is in a pipe, and the pipe back."""
        self.pipe, held = None, []
        while pipe.held:
            held.append(os.read(pipe.read, pipe.held))
            pipe.held -= len(held[-1])
        self.relay.pipes.give_back(pipe)
        return b"".join(held)

    def notice(self) -> None:
        """Note that this end is known to send no more, though the end of its stream is not read
        yet: it lies behind bytes that the peer does not take."""
        leaving = self.relay.leaving
        client = self.client()
        if client not in leaving and hang_up(self.socket.fileno()):
            leaving.start(client)

    # What is asked of the client's end while the connection is leaving.

    def taken(self) -> int:
        return sum(end.moved - queued(end.socket) for end in (self, self.peer))

    def patience(self) -> float:
        for end in (self, self.peer):
            # TCP counts the end of the stream as a byte; nobody's loss if it was a byte.
            if end.unsent is not None or end.pipe is not None or queued(end.socket) > 1:
                return SEND_TIMEOUT
            if hang_up(end.socket.fileno()) & _NOBODY:
                return SEND_TIMEOUT
        return HALF_CLOSED_IDLE

    def expire(self) -> None:
        self.relay.end(self, "idle")

    # What the poller calls.

    def ready(self, mask: int) -> None:
        if mask == READ:
            if self.reading:
                self.pump(self.stops_short)
            return
        if mask & WRITE:
            peer = self.peer
            if peer.unsent is not None or peer.pipe is not None:
                peer.flush()
        if self.reading and mask & ~WRITE:
            self.pump(self.stops_short or mask & HANG_UP != 0)
        # No read tells of an error that came with the end of the stream, or while we don't read.
        # An event may be stale; the socket itself knows.
        if mask & ERROR and self.ended != OVER:
            error = pending(self.socket)
            if error:
                self.failed(error)
        if mask & GONE and not self.ended:
            self.notice()

    def resume(self) -> None:
        if self.reading:
            self.pump(True)

    def abandon(self) -> None:
        if hasattr(self, "peer"):  # not over, or not wholly
            self.relay.end(self.client(), "fault")

    def stop(self) -> bool:
        if self.of_client:
            self.relay.end(self, "stopped")
        return self.of_client

    # The direction away from this end.

    def pump(self, to_the_end: bool) -> None:
        """Move what has arrived here to the peer, until nothing is left or the peer is full.

        A read that did not fill the buffer has emptied the socket (unless it ``stops_short``):
        whatever comes later is a new event. Not so where the end of the stream was told
        (``to_the_end``): no event follows it.
        """
        if self.bulk > 1 and self.splice(to_the_end):
            return
        relay = self.relay
        source = self.socket
        for _ in _CHUNKS:
            try:
                size = source.recv_into(relay.buffer, 0, _DONT_WAIT)
            except BlockingIOError:
                return
            except OSError as error:
                self.broken(error.errno)
                return
            if not size:
                self.finish()
                return
            try:
                sent = self.peer.socket.send(relay.view[:size], _DONT_WAIT)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.sever(error.errno)
                return
            self.moved += sent
            if sent < size:
                self.hold(bytes(relay.view[sent:size]))
                return
            if size < BULK:
                self.bulk = 0
                if not to_the_end:
                    return
            else:
                self.bulk += self.of_client
                if size < BUFFER_SIZE and not to_the_end:
                    return
                if self.bulk > 1:
                    break
        relay.poller.again(self)

    def splice(self, to_the_end: bool) -> bool:
        """Do as ``pump`` does, through a pipe; say whether that was all, or else a read is to see
        what there is: an end, an error, more behind TCP's urgent byte, or a kernel that does not
        splice.
        """
        relay = self.relay
        pipe = relay.pipes.take()
        if pipe is None:
            self.bulk = 0
            return False
        source, target = self.socket.fileno(), self.peer.socket.fileno()
        # splice(2) heeds the O_NONBLOCK of a socket, not SPLICE_F_NONBLOCK alone.
        os.set_blocking(source, False)
        for _ in range(SPLICES_A_TURN):
            try:
                size = os.splice(source, pipe.write, pipe.size, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                relay.pipes.give_back(pipe)
                return not to_the_end
            except OSError as error:
                relay.pipes.give_back(pipe)
                if relay.pipes.refused(error):
                    self.bulk = 0
                    return False
                self.broken(error.errno)
                return True
            if not size:
                relay.pipes.give_back(pipe)
                return False
            pipe.held = size
            if not self.drain(pipe, target):
                return True
            if size < BULK:
                self.bulk = 0
                break
        relay.pipes.give_back(pipe)
        relay.poller.again(self)
        return True

    def drain(self, pipe: Pipe, target: int) -> bool:
        """Splice a pipe into the peer; say whether it is empty. Else what is left is kept, in the
        pipe or out of it, or the direction has ended."""
        try:
            while pipe.held:
                sent = os.splice(pipe.read, target, pipe.held, flags=_SPLICE_FLAGS)
                pipe.held -= sent
                self.moved += sent
        except BlockingIOError:
            if self.pipe is None and self.relay.pipes.scarce:  # others are to have it
                self.hold(self.taken_out(pipe))
                return False
            self.pipe = pipe
            if self.reading:
                self.reading = False
                self.relay.poller.await_write(target, write=True)
            return False
        except OSError as error:
            # A send knows whether it is the peer or the kernel that does not want it.
            self.relay.pipes.refused(error)
            self.bulk = 0
            self.hold(self.taken_out(pipe))
            self.flush()
            return False
        return True

    def hold(self, unsent: bytes) -> None:
        """Keep what the peer did not take, and read no more until it has."""
        self.unsent = unsent
        self.reading = False
        self.relay.poller.await_write(self.peer.socket.fileno(), write=True)

    def flush(self) -> None:
        """Give the peer more of what it had not taken; read on when it has taken all."""
        target = self.peer.socket
        if self.pipe is not None:
            if not self.drain(self.pipe, target.fileno()):
                return
            self.drop_pipe()
        elif self.unsent is not None:
            try:
                sent = target.send(self.unsent, _DONT_WAIT)
            except BlockingIOError:
                return
            except OSError as error:
                self.sever(error.errno)
                return
            self.moved += sent
            if sent < len(self.unsent):
                self.unsent = self.unsent[sent:]
                return
            self.unsent = None
        self.relay.poller.await_write(target.fileno(), write=False)
        self.reading = True
        # The events that came meanwhile were passed over.
        self.pump(True)

    def drop_pipe(self) -> None:
        """Give a pipe back that was held: never twice."""
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            self.relay.pipes.give_back(pipe)

    # The ends of this direction, and of the connection.

    def finish(self) -> None:
        """Pass the end of the stream on; the connection ends with its second direction."""
        self.reading = False
        self.ended = FINISHED
        peer = self.peer
        if peer.ended:
            self.relay.end(self.client(), "closed" if peer.ended == FINISHED else self.gone())
            return
        try:
            peer.socket.shutdown(SHUT_WR)
        except OSError as error:
            # Nothing can reach the peer any more, but what it sent before can still be read.
            self.sever(error.errno)
            return
        self.relay.leaving.start(self.client())

    def sever(self, error: int | None = None) -> None:
        """Give this direction up: the peer takes nothing any more.

        What a backend wrote before it went away is still passed on, up to its end. Without a
        client there is nobody to deliver to, and no further event tells that it has gone.
        """
        peer = self.peer
        if peer.of_client:
            peer.broken(error)
            return
        self.reading = False
        self.ended = SEVERED
        self.unsent = None
        self.drop_pipe()
        if peer.ended:
            self.relay.end(self.client(), peer.gone())
            return
        self.relay.leaving.start(self.client())
        if peer.reading:
            peer.pump(True)

    def broken(self, error: int | None) -> None:
        """End both directions: reading has failed, after all that had arrived was passed on."""
        self.relay.end(self.client(), self.gone(error))
