"""A contender: a client that came when no descriptor was left, and is here on one that was lent.

It stays only if somebody loses one for it: that is asked as soon as it is seen who it is, and again
when it wants its backend.
"""

from sniproxy.dataplane.announced import AnnouncedArrival
from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.shares import Spare
from sniproxy.dataplane.waiting import FOR_A_DESCRIPTOR
from sniproxy.parser.alert import Refusal


class Contender(Arrival):
    """A client on a descriptor that was ``lent``, unless somebody has given it up for it, or until
    another is held back instead."""

    lent = True

    def begin(self) -> None:
        shares = self._connections.shares
        before = shares.balance()
        if shares.lacking() and self.bid() is False:
            self.turn_away()
            return
        self.lent = shares.balance() <= before and shares.lacking() > 0
        super().begin()

    def _connect(self, received: bytes | bytearray | memoryview) -> str | None:
        if self._backend is None and self._still_lent():
            received = self._keep(received)
            if self._contend() is None:
                return FOR_A_DESCRIPTOR if self._received else None
            self.lent = isinstance(self._backend, Spare)
        return super()._connect(received)

    def _still_lent(self) -> bool:
        """Say whether it is still here on what was lent, when all that is free was taken back."""
        if self.lent:
            shares = self._connections.shares
            lacking = shares.lacking()
            self.lent = shares.restore() >= lacking > 0
        return self.lent

    def refuse(self, refused: Refusal, *, linger: bool = True) -> None:
        super().refuse(refused, linger=linger and not self.lent)

    def end(self, how: str) -> None:
        super().end(how)
        if self.lent:
            self._connections.shares.restore()


class AnnouncedContender(Contender, AnnouncedArrival):
    """The same of one who comes through a balancer, and is not known yet."""
