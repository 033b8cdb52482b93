"""Arrivals that look up nothing themselves: resolver processes do it for them (``asking``).

A look-up can sleep for as long as the owner of a directory likes, and whoever looks up sleeps with
it. So here an arrival that knows its host asks, keeps what the client has sent, and goes on when it
is answered, all within ``PATIENCE``. In a line only the first asks, as elsewhere only the first
tries; it stays in its place until the answer is there.
"""

import os
from socket import SocketType

from sniproxy.dataplane.announced import AnnouncedArrival
from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.contender import AnnouncedContender, Contender
from sniproxy.dataplane.shares import Spare
from sniproxy.dataplane.waiting import FOR_A_DESCRIPTOR, FOR_A_SPARE
from sniproxy.parser.alert import Alert, Refusal
from sniproxy.resolver.answer import UNSURE, Answer, Outcome
from sniproxy.resolver.naming import ACME_SOCKET, NO_SERVER_NAME, directory_name
from sniproxy.resolver.reach import OWNER_BARRED, OWNER_HANGS, OWNER_SLOW

_REACHED = int(Outcome.REACHED)


def arrival_kind(connections: Connections, *, announced: bool) -> type[Arrival]:
    """Say what a new client of a process is, on a socket for balancers or on another."""
    if connections.asking is None:
        return AnnouncedArrival if announced else Arrival
    return IsolatedAnnouncedArrival if announced else IsolatedArrival


def contender_kind(connections: Connections, *, announced: bool) -> type[Contender]:
    """The same of one who comes when no descriptor is left."""
    if connections.asking is None:
        return AnnouncedContender if announced else Contender
    return IsolatedAnnouncedContender if announced else IsolatedContender


class IsolatedArrival(Arrival):
    """A client whose first bytes are a hello."""

    # The defaults are the class's: most connections change few of them.
    _question: int | None = None
    """The number of the question under way."""
    _place: str | None = None
    """The line that it waits in."""
    _owner = -1
    """Whose the entry is that is to serve it, as far as that was answered."""
    _unsure = False
    """Whether the hello may be one that validates its host, as far as it has come."""
    _seen: bool | None = None
    """Whether the hello came before, once that was looked at: it may be read twice."""
    _repeats = 0
    """How often nobody has looked, though asked."""
    _reserve: SocketType | None = None
    """A descriptor for its backend, at another's cost."""
    _reserved = False
    """Whether it has had one."""
    _spare: Spare | None = None
    """Says whether the backend that is found is entitled to a reserve that was held back."""

    @property
    def asks(self) -> bool:
        """Whether its backend is about to be known."""
        return self._question is not None or self._place == FOR_A_SPARE

    def ready(self, mask: int) -> None:
        self._told = True
        super().ready(mask)

    def _nameless_entry(self) -> str | None:
        return ""  # the answer says it

    def _awaits_validation(self, host: str) -> bool:  # noqa: ARG002 - likewise
        self._unsure = True
        return False

    def _connect(self, received: bytes | bytearray | memoryview) -> str | None:
        if self._seen is None:
            self._seen = self._repeated
        else:
            self._repeated = self._seen
        if not self._watched:  # all was read: what comes from now on is an event
            self._told = False
            self._connections.poller.watch(self._socket.fileno(), self)
            self._watched = True
        received = self._keep(received)
        connections = self._connections
        line = self._line
        if line:
            self.entry = line.partition("/")[0]
        elif self.host and not self._validates:  # nearly always
            line = self.entry = self.host
        else:
            line = self._expected_line()
        if self._place is None and line in connections.lines:  # not before those who wait
            self._line = self._place = line
            if self._may_wait():
                return line
            self.turn_away()
            return None
        if self._repeated and connections.loops.full(directory_name(self.entry)):
            self._line = line
            self._place = self._go_round(directory_name(self.entry), received)
            return self._place
        self._ask()
        return None

    def _expected_line(self) -> str:
        """Give the line of a host that has an entry of its own. Who is served by another's learns
        it from the answer, and may come in front of those who wait there."""
        line = self.entry = self.host or NO_SERVER_NAME
        return f"{line}/{ACME_SOCKET}" if self._validates else line

    def _ask(self) -> None:
        asking = self._connections.asking
        if asking is not None:  # else it would be of another kind
            validates = UNSURE if self._unsure else self._validates
            reserve, self._reserve = self._reserve, None
            self._question = asking.ask(self, self.host, validates, reserve)

    def _get_reserve(self) -> bool:
        """Get a descriptor for the backend at another's cost; else it is over, or is to wait for
        one."""
        reserve, self._backend = self._contend(), None
        self._reserve, self._reserved = reserve, reserve is not None
        if isinstance(reserve, Spare):
            self._spare = reserve
        if reserve is not None and self._place == FOR_A_SPARE:
            self._leave()
        return reserve is not None

    def _contend(self) -> SocketType | None:
        if self._connections.shares.awaited(self):
            return None  # others have it for as long as their questions are under way
        return super()._contend()

    def _lacks(self) -> str | None:
        """Name the line of what it lacks, or None if it is over."""
        if self._received is None:
            return None
        return FOR_A_SPARE if self._connections.shares.awaited(self) else FOR_A_DESCRIPTOR

    def _may_wait(self) -> bool:
        return super()._may_wait() and self._spare is None

    def owner(self) -> int:
        return self._owner

    def attempt(self) -> str | None:
        def again() -> None:
            if self._received is not None:  # else it is over
                place = self._connect(self._received)
                self._place = self._place if place is None else place

        if self._question is None:
            self._connections.poller.guard(self, again)
        return self._place

    # What ``Asking`` calls.

    def served(self, backend: SocketType | None, version: int, owner: int) -> None:
        host, connections = self.host, self._connections
        if (
            backend is None
            or self._repeated
            or connections.barred
            or self._place is not None
            or self._spare is not None
        ):
            self.answered(Answer(_REACHED, host, version, owner=owner), backend)
            return
        self._question = None
        self._backend, self._owner = backend, owner
        self._line = self.entry = host
        self._forward(backend, directory_name(host), version, self._received or b"")

    def answered(self, said: Answer, backend: SocketType | None) -> None:
        self._question = None
        self._backend = backend
        if said.outcome == _REACHED:
            self._note(said)
            self._reached(said, backend)
        elif said.outcome == Outcome.AGAIN and not self._repeats:
            self._repeats += 1
            self._ask()
        elif said.outcome == Outcome.WHOLE:
            self._read_rest()
        else:
            self._note(said)
            if said.outcome == Outcome.MAY_PASS and self._may_wait():
                self._wait_in(self._line)
            else:
                place = self._place or FOR_A_SPARE
                self._refused(said)
                self._next(place)

    def _note(self, said: Answer) -> None:
        """Note which entry it is, and whose. Of one that hangs nobody knows which."""
        line, self._owner = said.line, said.owner
        self._line = line or self._expected_line()
        self.entry = self._line.partition("/")[0]
        asking = self._connections.asking
        if asking is not None and (
            self._repeated or self._connections.barred or said.outcome != _REACHED
        ):
            asking.note(directory_name(self.entry), said.owner)

    def may_wait(self) -> bool:
        return super()._may_wait()

    def once_more(self) -> None:
        asking, number = self._connections.asking, self._question
        if asking is not None and number is not None and not self._repeats:
            self._repeats += 1
            asking.forget(number)
            self._ask()

    def unanswered(self, reason: str) -> None:
        place, self._question = self._place or FOR_A_SPARE, None
        self.refuse(Refusal(Alert.INTERNAL_ERROR, reason))
        self._next(place)

    def _reached(self, said: Answer, backend: SocketType | None) -> None:
        place = self._place or FOR_A_SPARE
        self._act_on(said, backend)
        if self._place != place:  # else it would try again at once itself
            self._next(place)

    def _act_on(self, said: Answer, backend: SocketType | None) -> None:
        connections = self._connections
        if backend is None:  # the kernel had no descriptor for it here
            if self._reserved:  # others of this machine have taken it
                self.turn_away()
            elif self._get_reserve():
                self._ask()
            else:
                line = self._lacks()
                if line is not None:
                    self._wait_in(line)
            return
        spare, self._spare = self._spare, None
        # What was lent may have come back meanwhile.
        if spare is not None and connections.shares.restore() and not spare.entitled(backend):
            self.turn_away()
            return
        received = self._received or b""
        directory = directory_name(self.entry)
        if connections.barred and connections.barred.holds(directory):
            self.refuse(Refusal(Alert.INTERNAL_ERROR, OWNER_BARRED))
            return
        if self._repeated and connections.loops.full(directory):
            backend.close()
            self._backend = None
            place = self._go_round(directory, received)
            if place is not None:
                self._wait_in(place)
            return
        self._leave()
        self._forward(backend, directory, said.version, received)

    def _refused(self, said: Answer) -> None:
        if said.outcome == Outcome.AGAIN:
            refused = Refusal(Alert.INTERNAL_ERROR, "resolver_died")
        else:
            refused = Refusal(Alert(said.alert), said.reason)
        if said.reason in (OWNER_HANGS, OWNER_SLOW):
            self._connections.log.warning(said.reason, host=self._line, uid=said.owner)
            self.refuse(refused)
        elif said.reason == OWNER_BARRED:
            self.refuse(refused)
        else:
            error = said.error
            self._not_reached(refused, OSError(error, os.strerror(error) if error else said.reason))

    def _read_rest(self) -> None:
        """Read the hello to its end: it may be one that validates the host, and that has a socket
        for it."""
        received, place = self._received or b"", self._place
        self._leave()
        self._next(place)
        self.undecided, self._unsure = True, False
        self.kept = 0  # what waits is counted elsewhere
        self._read_whole(self.host, received)
        if self.undecided:
            self._connections.wait(self)
            # What has come meanwhile is no event any more.
            while self._read():
                pass

    # Lines.

    def _wait_in(self, line: str) -> None:
        if self._place != line:
            self._leave()
            self._place = line  # before: it may be turned away there
            self._connections.lines.join(line, self)

    def _leave(self) -> None:
        if self._place is not None:
            self._connections.lines.leave(self._place, self)
            self._place = None

    def _next(self, place: str | None) -> None:
        """Have who is first in a line, where it no longer waits, try now."""
        if place is not None:
            self._connections.lines.go_on(place)

    def _let_go(self) -> None:
        asking = self._connections.asking
        if self._question is not None and asking is not None:
            asking.forget(self._question)
            self._question = None
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
        self._leave()
        super()._let_go()
        if self._spare is not None:
            self._spare = None
            self._connections.shares.restore()


class IsolatedAnnouncedArrival(IsolatedArrival, AnnouncedArrival):
    """A client whose first bytes are to be a PROXY header."""


class IsolatedContender(IsolatedArrival, Contender):
    """A client on a descriptor that was lent."""

    def _connect(self, received: bytes | bytearray | memoryview) -> str | None:
        if not self._reserved and self._still_lent():
            received = self._keep(received)
            if not self._get_reserve():
                self._place = self._lacks()
                return self._place
            self.lent = self._spare is not None
        return super()._connect(received)


class IsolatedAnnouncedContender(IsolatedContender, AnnouncedContender):
    """The same of one who comes through a balancer, and is not known yet."""
