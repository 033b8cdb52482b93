"""A listening socket that was passed to us, and what is accepted from it.

The socket belongs to its manager too: it is never shut down, ``listen`` is never called on it, and
others may accept from it at any time; only where we have it alone, it is closed to newcomers before
the end. Accepting never ends the process: what can't be accepted now is accepted later.
"""

import errno
import os
import select
import socket
from collections.abc import Callable

from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.counts import ACCEPTED
from sniproxy.dataplane.isolated import arrival_kind, contender_kind
from sniproxy.dataplane.last_call import begin_no_more
from sniproxy.dataplane.poller import READ
from sniproxy.dataplane.stray import close_strays
from sniproxy.dataplane.tally import MOMENT, Tally
from sniproxy.dataplane.timers import NO_MEMORY
from sniproxy.dataplane.waiting import FOR_A_DESCRIPTOR, FOR_A_SPARE
from sniproxy.parser.proxy_header import SocketAddress
from sniproxy.resolver.hosts import DESCRIPTORS_EXHAUSTED, refuse_descriptors

LARGEST_BATCH = 64
"""Connections accepted in a row before the others have their turn."""

SHARED_BATCH = 8
"""The same where other workers share the queue: what a batch takes they can't."""

CROWDED = 0.01
"""Seconds that other workers have to take what this one can't, before it deals out its own."""

LENT = 0.002
"""Seconds until the next look where all that can be lent is."""

PAUSE = 0.1
"""Seconds without accepting when no descriptor is free: the queue keeps the connections."""

MOST_FAILURES = 100
"""Connections in a row that could not be accepted, each for a reason of its own; after so many the
reason is ours (a filter of system calls that forbids it, say), and trying on would be all we do."""

DEALING = 1.0
"""Seconds in which a worker deals out its own descriptors, after it has seen that the others could
not take what was in the queue: then they are asked again."""

HANDSHAKE = 0.3
"""Seconds that clients have to complete a handshake that is under way when we stop: a round trip,
if nothing is lost."""

LAST_CALL = 1.0
"""Seconds in which a queue that we may not have alone is to be empty once. Who comes without end
is to be served by the next copy, which has more time for it."""

_STREAM = int(socket.SOCK_STREAM)

_OF_ONE_CLIENT = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)
"""Errors of the connection that was to be accepted, not of the listening socket, accept(2)."""


def welcome(
    connections: Connections, client: socket.SocketType, address: SocketAddress, kind: type[Arrival]
) -> None:
    """Take over a socket that was just accepted, in blocking mode or not, as an arrival of this
    kind."""
    try:
        arrival = kind(connections, client, address, connections.clock())
        totals = connections.totals
        totals.clients.add(client)
        totals.numbers[ACCEPTED] += 1
        begin = arrival.begin
    except Exception:
        connections.close(client)
        raise
    connections.poller.guard(arrival, begin)


class Listener:
    """Accepts from one listening socket while it is open.

    Where other workers do as well, ``crowded`` is called when this one can't take what waits there,
    and somebody is to have the others ``look``: only we were woken for it. The ``tally`` says whose
    turn it is then. Clients are ``announced`` where it is a socket for balancers, which begin with
    a PROXY header.
    """

    def __init__(
        self,
        listening: socket.socket,
        connections: Connections,
        crowded: Callable[[], None] | None = None,
        tally: Tally | None = None,
        *,
        announced: bool = False,
    ) -> None:
        self._socket = listening
        self._connections = connections
        self._kind = arrival_kind(connections, announced=announced)
        self._crowded = crowded
        self._shared = crowded is not None
        self._tally = tally
        self._contender = contender_kind(connections, announced=announced)
        self._asked = False
        self._dealing = float("-inf")
        # As a plain number: the property converts it to an enumeration each time.
        self._family = int(listening.family)
        self._batch = 1
        self._last_turn = 0
        self._failures = 0
        self._watched = False
        self._going_on = False
        self._lost = False
        self._leaving = False
        if listening.family in (socket.AF_INET, socket.AF_INET6):
            # Inherited by what is accepted, so that no connection costs a call for it: dead
            # clients are found, and small records are not held back.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            refuse_descriptors(listening)
        self._watch()

    def _watch(self) -> None:
        self._connections.poller.watch_listener(self._socket.fileno(), self, shared=self._shared)
        self._watched = True

    def _unwatch(self) -> None:
        if self._watched:
            # The registration would outlive our descriptor as long as somebody else has one.
            self._connections.poller.unwatch(self._socket.fileno())
            self._watched = False

    def ready(self, mask: int) -> None:  # noqa: ARG002 - a listening socket is only ever readable
        """Accept a batch, larger each time that the queue outlasted the last.

        That it did is seen by being called in the very next turn; a try at an empty queue would
        cost more than it tells.
        """
        turn = self._connections.poller.turn
        shared = self._shared
        largest = SHARED_BATCH if shared else LARGEST_BATCH
        self._batch = min(2 * self._batch, largest) if turn == self._last_turn + 1 else 1
        self._last_turn = turn
        # Others may take what the poller told us of, and a blocking accept would stop everything.
        # They may also have made it blocking again: systemd does with each command of a unit that
        # has it as standard input (exec_child), long after we have started.
        self._socket.setblocking(False)
        # The listening socket's own accept makes a socket.socket and its time-out with each call.
        accept = self._socket._accept  # type: ignore[attr-defined]
        family = self._family
        connections = self._connections
        lines = connections.lines
        kind = self._kind
        make = socket.SocketType
        tally = self._tally
        if tally is not None and self._batch > 1:
            tally.count(connections.totals.accepted)
            if tally.ahead() and not self._leaving:
                self._see_to_going_on(MOMENT)
                self._unwatch()
                return
        for _ in range(self._batch):
            if FOR_A_DESCRIPTOR in lines:
                # What is free next is for the backends of those who are here already.
                self._trouble(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                self._pause()
                return
            try:
                fd, address = accept()
            except BlockingIOError:
                if self._leaving:
                    self.close()
                return
            except NO_MEMORY:
                self._lost = True
                raise
            except OSError as error:
                self._failures += 1
                if error.errno in _OF_ONE_CLIENT and self._failures < MOST_FAILURES:
                    continue
                exhausted = error.errno in DESCRIPTORS_EXHAUSTED
                if exhausted and not _readable(self._socket):
                    # There is nobody: accept(2) wants a number before it looks.
                    if self._leaving:
                        self.close()
                    return
                self._trouble(error)
                if exhausted and self._deal():
                    continue
                self._pause()
                return
            try:
                client = make(family, _STREAM, 0, fd)
            except Exception:
                os.close(fd)
                raise
            self._failures = 0
            welcome(connections, client, address, kind)
            if shared:
                # Once a turn. Whoever has accepted is woken last for another: so all get as many,
                # and who is at work is not told of a connection that wakes somebody who sleeps.
                shared = False
                self.look()
                if tally is not None:
                    tally.count(connections.totals.accepted)
        if self._leaving:
            connections.poller.again(self)

    def look(self) -> None:
        """See what is in the queue, though another worker was woken for it. The next connection
        wakes this one last of all."""
        if self._watched:
            try:
                self._connections.poller.requeue_listener(self._socket.fileno())
            except OSError as error:
                self._trouble(error)
                self._pause()

    def _deal(self) -> bool:
        """Accept on a descriptor that is lent for it, to see who is entitled to one, but not before
        other workers had their chance; say whether to go on."""
        connections = self._connections
        if self._shared and connections.clock() >= self._dealing:
            self._see_to_going_on(CROWDED)
            self._asked = True
            return False
        back_soon = connections.asking is not None and connections.asking.busy
        waited_for = connections.lines.waits(FOR_A_SPARE)
        if waited_for or not connections.shares.lend(back_soon=back_soon):
            # It deals, but to others, who are about to say who they are, or which host they reach.
            if connections.shares.dealing():
                self._see_to_going_on(LENT)
            return False
        try:
            client, address = self._socket.accept()
        except NO_MEMORY:
            self._lost = True
            raise
        except BlockingIOError:  # another worker was quicker
            connections.shares.restore()
            return True
        except OSError:
            return False
        welcome(connections, client, address, self._contender)
        return True

    def _trouble(self, error: OSError) -> None:
        """Log an error of the system, which may last."""
        self._connections.log.warning("accept_failed", error=error.strerror or error)

    def _pause(self) -> None:
        """Leave the poller for a while: it is level-triggered and would report without end."""
        self._see_to_going_on()
        self._unwatch()
        if self._crowded is not None:
            self._crowded()

    def _see_to_going_on(self, pause: float = PAUSE) -> None:
        """Have it watched again after a while, whatever happens: to be done before it is not."""
        if not self._going_on:
            self._connections.later(pause, self._go_on)
            self._going_on = True

    def _go_on(self) -> float | None:
        """Watch again, unless it is closed; where that fails, a little later."""
        if self._lost:
            close_strays(self._socket, self._connections.poller)
            self._lost = False
        if not self._watched and self.open:
            try:
                self._watch()
            except OSError as error:
                self._trouble(error)
                return PAUSE
            if self._asked and _readable(self._socket):  # nobody else has taken it
                self._dealing = self._connections.clock() + DEALING
            self._asked = False
        if self._leaving:
            self._connections.poller.again(self)
        self._going_on = False
        return None

    def resume(self) -> None:
        """Look whether the queue is empty, for no event tells that. (What is in it is an event.)"""
        if self._watched:
            self.ready(READ)

    def abandon(self) -> None:
        """Go on after a pause: an unexpected error must neither end nor occupy the process."""
        if self._watched:
            self._pause()

    def stop(self) -> bool:
        self.close()
        return False

    def finish(self, *, alone: bool) -> None:
        """Accept what is in the queue, and close: where nobody else has the socket, closing resets
        what was not accepted.

        If we know that we are ``alone``, nothing comes after it, and it may take all of our time.
        Several workers may each do so: the last to close has seen the queue empty.
        """
        if alone:
            begin_no_more(self._socket)
            if self._family == socket.AF_UNIX:  # it has no handshakes, and is readable from now on
                self._empty()
            else:
                self._connections.later(HANDSHAKE, self._empty)
        else:
            self._connections.later(LAST_CALL, self.close)
            self._empty()

    def _empty(self) -> None:
        self._leaving = True
        self.resume()

    @property
    def open(self) -> bool:
        """Whether it still accepts, now or after a pause."""
        return self._socket.fileno() >= 0

    def close(self) -> None:
        """Stop accepting and close our copy; the socket may live on elsewhere."""
        self._unwatch()
        self._socket.close()


def _readable(one: socket.socket) -> bool:
    poll = select.poll()
    poll.register(one, select.POLLIN)
    return bool(poll.poll(0))
