"""The status sockets: whoever may connect to one may see what there is, and change nothing.

They are served in the loop of the first process, which may be the only one and have clients: so an
answer is made in pieces, with pauses in which others have their turn, and there are few at a time,
each within bounds of bytes and of time.
"""

import contextlib
import errno
import socket
from collections.abc import Generator, Sequence
from functools import partial
from time import monotonic

from sniproxy.dataplane.poller import WRITE, Poller
from sniproxy.dataplane.stray import close_strays
from sniproxy.dataplane.sweep import Countdown, Sweep
from sniproxy.dataplane.timers import NO_MEMORY
from sniproxy.process.inherited import Listening
from sniproxy.process.source import Source
from sniproxy.resolver.hosts import refuse_descriptors
from sniproxy.status.answers import answer
from sniproxy.status.http import Refused, parse, refusal
from sniproxy.status.overview import Answered, Ask, Refresh, Step

MOST_AT_ONCE = 16
"""Requests at a time. One more ends who has not asked yet for longest, or is refused itself."""

PATIENCE = 10.0
"""Seconds for the request, and as many for its answer to be taken."""

SLICE = 0.001
"""Seconds of work for one answer until the others have their turn. A round trip of theirs waits
twice."""

PAUSE = 0.001
"""Seconds between two slices."""

UNABLE = 1.0
"""Seconds without accepting where no descriptor is left, not even the one held back for it."""

MOST_READ = 16
"""Reads in a row: who never ends is not to have others wait."""

_LOOPBACK = "127.", "::1", "::ffff:127."
_SWEEP = 0.5
_READ = 4096

Wire = socket.socket


def _is_loopback(wire: Wire) -> bool:
    """Say whether it has come to an address at which only this machine's users can ask."""
    address = wire.getsockname()
    return isinstance(address, tuple) and address[0].startswith(_LOOPBACK)


class Status:
    """Serves status sockets, which stay open when it is closed."""

    def __init__(self, sockets: Sequence[Listening], source: Source, poller: Poller) -> None:
        self.source = source
        self.poller = poller
        self.later = poller.timers.later
        self.visitors: Countdown[_Visitor] = Countdown(PATIENCE, lambda one: one.expire())
        self._sweep = Sweep(self.later, _SWEEP, lambda: self.visitors.sweep(monotonic()))
        for one in sockets:
            _Door(self, one.socket)
        self._paging = False
        """Whether somebody's page of connections is awaited, who may have left."""
        self._spare: Wire | None = None
        self.hold_back()

    def welcome(self, wire: Wire) -> None:
        """Have somebody who has connected ask."""
        visitor = _Visitor(self, wire)
        try:
            self._sweep.wake()
            answered = [one for one in self.visitors if one.over]
            busy = [one for one in self.visitors if not one.over]
            if len(answered) >= MOST_AT_ONCE:  # they have their answer, and do not leave
                answered[0].close()
            self.visitors.start(visitor, monotonic())
            self.poller.watch(wire.fileno(), visitor)
            if len(busy) >= MOST_AT_ONCE:
                last = next((one for one in busy if one.silent), visitor)
                last.refuse(Refused(503, f"{MOST_AT_ONCE} others are being answered"))
        except Exception:
            visitor.close()
            raise

    def turn_page(self) -> None:
        """Ask for the next page of connections. One at a time: what a worker's channel has no room
        for is lost, and it has not for those of all visitors."""
        visitor = next((one for one in self.visitors if one.wish), None)
        if visitor is None or visitor.wish is None or self._paging:
            return
        wish, visitor.wish = visitor.wish, None
        self._paging = True
        try:
            self.source.page(wish, partial(self._paged, visitor))
        except BaseException:
            self._paging = False
            raise

    def _paged(self, visitor: "_Visitor", answered: Answered | None) -> None:
        self._paging = False
        visitor.known(answered)
        self.turn_page()

    def hold_back(self) -> None:
        """Hold a descriptor back, for when none is left: who looks then has a reason to."""
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = Wire(socket.AF_UNIX)

    def give_way(self) -> bool:
        """Free the descriptor that is held back; say whether there was one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
        return spare is not None

    def close(self) -> None:
        """End what is under way. In a process that was just forked it goes on in the other: nothing
        is said to the epoll that both have."""
        for visitor in list(self.visitors):
            visitor.close()
        self.give_way()  # last: who leaves has it held back


class _Door:
    """A listening socket."""

    def __init__(self, status: Status, listening: Wire) -> None:
        self._status = status
        self._socket = listening
        self._lost = False
        """Whether somebody may have been accepted whom nobody knows."""
        # Nobody passes us what sleeps when it is closed.
        refuse_descriptors(listening)
        self._watch()

    def _watch(self) -> None:
        self._status.poller.watch_listener(self._socket.fileno(), self, shared=False)

    def ready(self, mask: int) -> None:  # noqa: ARG002 - it can only be readable
        self._socket.setblocking(False)  # a service manager may have undone it
        try:
            try:
                wire, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._status.give_way():
                    raise
                wire, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return
        except NO_MEMORY:
            self._lost = True
            raise
        except OSError:
            self.abandon()
            return
        self._status.welcome(wire)

    def resume(self) -> None:
        """Never called: who waits is an event."""

    def abandon(self) -> None:
        """Go on after a pause."""
        if self._socket.fileno() >= 0:
            self._status.later(UNABLE, self._again)
            self._status.poller.unwatch(self._socket.fileno())

    def _again(self) -> None:
        if self._socket.fileno() >= 0:
            if self._lost:
                close_strays(self._socket, self._status.poller)
                self._lost = False
            self._status.poller.unwatch(self._socket.fileno())
            self._watch()

    def stop(self) -> bool:
        return False  # it is not a connection, and others go on with it


class _Visitor:
    """Somebody who asks: one request, one answer."""

    def __init__(self, status: Status, wire: Wire) -> None:
        self._status = status
        self._wire = wire
        self._received = b""
        self._steps: Generator[Step, Answered | None, None] | None = None
        self._unsent = b""
        self._waits = False
        """Whether something has to be known before the next step."""
        self.wish: Ask | None = None
        """A page that it waits for and that nobody has been asked for."""
        self._heard = False
        """Whether the client has said that it sends no more."""
        self.over = False
        """Whether the answer has been given."""

    @property
    def silent(self) -> bool:
        """Whether its request is not complete."""
        return self._steps is None

    # What the poller and the countdown call.

    def ready(self, mask: int) -> None:
        if mask & WRITE and self._unsent:
            self._status.poller.await_write(self._wire.fileno(), write=False)
            self._status.later(0, self._go_on)
        self.resume()

    def resume(self) -> None:
        """Read: the request, and behind it what nobody wants to know."""
        try:
            for _ in range(MOST_READ):
                data = self._wire.recv(_READ, socket.MSG_DONTWAIT)
                if not data:
                    self._heard = True
                    if self.silent and self._received:
                        self.refuse(Refused(400, "expected a whole request"))
                    elif self.silent or self.over:
                        self.close()
                    return
                if self.silent:
                    self._received += data
                    self._ask()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._status.poller.again(self)

    def abandon(self) -> None:
        self.close()

    def stop(self) -> bool:
        self.close()
        return False

    def expire(self) -> None:
        """End it: its time is up."""
        if self.silent:
            self.refuse(Refused(408, f"expected a request within {PATIENCE:.0f} seconds"))
        else:
            self.close()

    def close(self) -> None:
        self._status.visitors.stop(self)
        if self._wire.fileno() >= 0:
            self._status.poller.forget(self._wire.fileno())
            self._wire.close()
            self._status.hold_back()

    # The answer.

    def _ask(self) -> None:
        try:
            request = parse(self._received)
            if request is not None:
                if not request.near and _is_loopback(self._wire):
                    raise Refused(421, "expected Host to be an address, or localhost")
                self._answer(answer(self._status.source, request))
        except Refused as refused:
            self.refuse(refused)

    def refuse(self, refused: Refused) -> None:
        only_head = self._received.lstrip(b"\r\n").startswith(b"HEAD ")
        self._answer(refusal(refused, only_head=only_head))

    def _answer(self, steps: Generator[Step, Answered | None, None]) -> None:
        self._steps = steps
        self._status.visitors.stop(self)  # it goes to the end of those who have time
        self._status.visitors.start(self, monotonic())
        self._status.later(0, self._go_on)

    def _go_on(self, answered: Answered | None = None) -> float | None:
        """Do what can be done for a while; give the seconds until there is more to do, None where
        something else has to happen first."""
        end = monotonic() + SLICE
        while self._steps is not None and not self._waits and not self.over:
            if self._wire.fileno() < 0:
                break
            if self._unsent:
                if not self._send():
                    break
            elif monotonic() > end:
                return PAUSE
            elif not self._take(self._steps, answered):
                break
            answered = None
        return None

    def _take(
        self, steps: Generator[Step, Answered | None, None], answered: Answered | None
    ) -> bool:
        """Take the next step of the answer; say whether to go on."""
        try:
            step = steps.send(answered)
            if isinstance(step, bytes):
                self._unsent = step
                return True
            self._waits = True
            if isinstance(step, Refresh):
                self._status.source.refresh(self.known)
            else:
                self.wish = step
                self._status.turn_page()
        except StopIteration:
            self._end()
        except Exception:  # what was said is no whole answer, and there will be no more of it
            self.close()
            raise
        return False

    def known(self, answered: Answered | None = None) -> None:
        """Go on with what was asked for."""
        if self._waits:
            self._status.later(0, partial(self._go_on, answered))
            self._waits = False

    def _send(self) -> bool:
        """Send; say whether all is sent."""
        try:
            sent = self._wire.send(self._unsent, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return False
        self._unsent = self._unsent[sent:]
        if self._unsent:
            self._status.poller.await_write(self._wire.fileno(), write=True)
        return not self._unsent

    def _end(self) -> None:
        """Close in order: what is unread would reset the connection, and might destroy what was
        sent."""
        self.over = True
        if self._heard:
            self.close()
            return
        try:
            self._wire.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
