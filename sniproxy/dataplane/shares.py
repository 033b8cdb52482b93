"""Shares: who loses a descriptor, and to whom, when none is left.

First who has owed us a hello for long. Then the client address that has the most loses one to a
newcomer from an address that has fewer (max-min fairness): an undecided hello, or a client that
waits, else its longest-idle connection. Where all come from one address, by a Unix socket or
through a balancer that tells nothing, the host that has the most loses one to a newcomer of a host
that has fewer.

Spare descriptors let us see who a newcomer is, or which host it reaches. Nobody is counted until
none is left; from then on all are, again and again, at a bounded rate.
"""

import contextlib
import resource
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from socket import AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM, SocketType
from typing import Protocol, cast

from sniproxy.dataplane.address import network
from sniproxy.dataplane.holdings import Holdings, listener
from sniproxy.dataplane.poller import Poller, Watcher
from sniproxy.dataplane.relay import End
from sniproxy.dataplane.stream import idle
from sniproxy.dataplane.sweep import Countdown, Sweep
from sniproxy.dataplane.timers import NO_MEMORY, Later
from sniproxy.log.log import Log
from sniproxy.parser.alert import Alert, Refusal
from sniproxy.parser.proxy_header import SocketAddress
from sniproxy.resolver.naming import directory_name

FEWEST, MOST = 4, 32
"""Descriptors held back, a sixteenth of all within these bounds: the first for a backend, the
others for clients who have not said yet who they are, or which host they want. So many may be
accepted while one does."""

GRACE = 2.0
"""Seconds from the accept until an undecided hello is ended for anybody, and not only for who has
fewer: time for a packet that was lost, and no more."""

HEARING = 0.1
"""Seconds that who is here on what was lent has to say who it is, before it is ended for the next:
a balancer says it at once, a hello takes a round trip."""

MOMENT = 1.0
"""Seconds within which what is lent for a look-up in another process is back."""

FOR_ONE = 3
"""Clients that are ended for one, at most: for its own descriptor and its backend's two who have
one each, and where it is the machine that has no more, others may take them."""

LOOKED_AT = 64
"""Undecided hellos, from the oldest on, among which one is looked for."""

SLICE = 1000
"""Clients counted in a row, in some 4 ms."""

PAUSE = 0.005
"""Seconds between two slices: 100,000 are counted within a second."""

REST = 20
"""From one count to the next it takes so many times as long as the count: 5 % of a CPU."""

STALE = 4
"""But at once where a quarter as many have come as are here (some 12 us each): who had the most may
have left, and have come again."""

FEW = 16
"""Beside so many, which may come in between whatever the number of clients."""

FORGET = 10.0
"""Seconds without a question until the counts are given up."""

_STREAM_NONBLOCK = SOCK_STREAM.value | SOCK_NONBLOCK.value
_UNIX = int(AF_UNIX)


class Unrelayed(Watcher, Protocol):
    """A client that has no backend yet, or no longer."""

    def evict(self) -> None:
        """End it to make room for another. Its descriptors are free on return."""


class Undecided(Unrelayed, Protocol):
    """A client, accepted at ``accepted_at``, whose hello is not complete, with ``kept`` bytes. Its
    descriptor may be ``lent``."""

    accepted_at: float
    kept: int
    lent: bool

    def client_address(self) -> SocketAddress:
        """Give its address, as far as that is known."""

    def expire(self) -> None:
        """End it: its time is up."""

    def bid(self) -> bool | None:
        """Ask for a descriptor by its address: ``Shares.make_room``."""


Holder = Unrelayed | End
"""Who has a client's socket."""


class Spare(SocketType):
    """A descriptor that is held back: a socket for a backend, which may connect only to a host that
    is ``entitled`` to it, else that is a Refusal."""

    __slots__ = ("entitled",)

    entitled: "Callable[[SocketType], bool]"

    def connect(self, address: object) -> None:
        super().connect(address)  # type: ignore[arg-type]
        entitled = self.entitled(self)
        del self.entitled
        if not entitled:
            raise Refusal(Alert.INTERNAL_ERROR, "no_descriptor")


class Census:
    """Who has what, by address, and by host as long as all are of one address; and what each Unix
    client has moved, and since when, for no kernel tells that. So many ``came`` before it."""

    __slots__ = ("addresses", "came", "hosts", "listeners", "moved", "wanted")

    def __init__(self, came: int = 0) -> None:
        self.came = came
        self.addresses = Holdings()
        self.hosts = Holdings()
        self.listeners: dict[str, str] = {}
        """Who listens for a host, by its directory, as far as somebody is connected."""
        self.wanted: list[tuple[str, SocketType]] = []
        """The directories that clients are about to be connected to: counted last."""
        self.moved: dict[SocketType, tuple[int, float]] = {}

    def put(self, holder: "Holder", client: SocketType) -> None:
        """Count one by its host."""
        wanted = _wanted(holder)
        if isinstance(holder, End):
            whose = self.listeners[holder.host] = listener(holder.peer.socket)
            self.hosts.put(whose, client)
        elif wanted:
            self.wanted.append((directory_name(wanted), client))
        else:
            self.hosts.put("", client)

    def compare(self) -> None:
        """See who has the most."""
        self.addresses.compare()
        for directory, client in self.wanted:
            self.hosts.put(self.listeners.get(directory, directory), client)
        self.wanted.clear()
        if len(self.addresses) == 1:
            self.hosts.compare()


class Shares:
    """Deals out the descriptors of a process when none is left."""

    def __init__(
        self,
        poller: Poller,
        clients: set[SocketType],
        came: Callable[[], int],
        undecided: Countdown[Undecided],
        log: Log,
        clock: Callable[[], float],
        later: Later,
    ) -> None:
        self._poller = poller
        self._clients = clients
        self._came = came
        self._undecided = undecided
        self._log = log
        self._clock = clock
        self._sweep = Sweep(later, PAUSE, self._go_on)
        self._known = self._next = Census()
        self._uncounted: list[SocketType] = []
        self._spent = self._asked_at = 0.0
        self._returned = 0
        self._due = float("-inf")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._held_back = max(FEWEST, min(MOST, limit // 16))
        self._spares: list[Spare] = []
        self.restore()

    # The spares.

    def lacking(self) -> int:
        """Count what is lent."""
        return self._held_back - len(self._spares)

    def restore(self) -> int:
        """Take back what was lent, as far as numbers are free; count what is still lacking."""
        with contextlib.suppress(OSError, *NO_MEMORY):
            while self.lacking():
                self._spares.append(Spare(_UNIX, _STREAM_NONBLOCK))
        return self.lacking()

    def balance(self) -> int:
        """Take back what can be; give a number that grows with each descriptor that somebody gives
        up, while any are lacking. What was lent to who is ended comes back, and is no gain."""
        return -self.restore() - self._returned

    def lend(self, *, back_soon: bool = False) -> bool:
        """Have a number free for who comes next, whoever it is, if anybody could be entitled. What
        is lent may be ``back_soon``: then nobody is ended for it."""
        dealing = self.dealing()
        if self._uncounted and not dealing:
            return False
        self.restore()
        if dealing and self._lend(but=1):
            return True
        oldest = self._undecided.oldest()
        if oldest is not None:  # it is ended, unless another is to be ended even for that one
            if dealing and oldest.accepted_at + HEARING > self._clock():
                return False
            if oldest.bid() is not True:
                self._end(oldest)
        elif back_soon or not dealing or not self._end_one_of_the_most():
            return False
        self.restore()
        return self._lend()

    def _lend(self, but: int = 0) -> bool:
        """Free the number of a spare, ``but`` of the last ones."""
        if len(self._spares) <= but:
            return False
        self._spares.pop().close()
        return True

    def dealing(self) -> bool:
        """Say whether anybody has so much that somebody could be entitled to it."""
        return self._census().addresses.greatest()[0] > 1

    def backend(self, one: Undecided, client: SocketType) -> SocketType | None:
        """Give one a socket for its backend at another's cost, if its address or its host is
        entitled to that. What was lent to it is taken back before."""
        enough = self.balance() + 1 + one.lent
        # Who has not said yet which host it wants may want one that has few.
        many = len(self._undecided) >= self._known.hosts.greatest()[0]
        for _ in range(FOR_ONE):
            room = one.bid()
            oldest = next(self._young(), None) if room is None and many else None
            if not room and (oldest is None or not self._end(oldest)):
                break
            if self.balance() >= enough:
                self._lend()
            elif self.lacking():
                continue
            with contextlib.suppress(OSError):  # others of this machine may have taken it
                return SocketType(_UNIX, _STREAM_NONBLOCK)
        if room is not None or not self._spares or self._known.hosts.greatest()[0] < 2:
            return None
        spare = self._spares.pop()
        spare.entitled = lambda backend: self._make_room_for_host(listener(backend), client)
        return spare

    def awaited(self, one: Undecided) -> bool:
        """Say whether one is to wait for a spare: all are lent, for a moment, and its host could be
        entitled to one, of which addresses say nothing."""
        known = self._known
        if self._spares or self._clock() >= one.accepted_at + MOMENT or len(known.addresses) != 1:
            return False
        same = known.addresses.count(network(one.client_address())) > 0
        return same and known.hosts.greatest()[0] > 1

    def close(self) -> None:
        """Give the spares up, for good."""
        self._held_back = 0
        while self._lend():
            pass

    # Who loses one to whom.

    def make_room(self, client: SocketType, address: SocketAddress) -> bool | None:
        """End somebody for a client. Say False where its address is not entitled to that, None
        where addresses say nothing of it."""
        oldest = self._undecided.oldest()
        if oldest is not None and oldest.accepted_at + GRACE <= self._clock():
            return self._end(oldest)
        addresses = self._census().addresses
        greatest, whose = addresses.greatest()[0], network(address)
        if greatest < 2 or (len(addresses) == 1 and addresses.count(whose)):
            return None
        own, mine = addresses.count(whose, client), None
        for one in self._young():
            other = network(one.client_address())
            if other == whose:
                mine = mine or one
            elif own + 1 < addresses.count(other):
                addresses.add(whose, client)
                return self._end(one)
            if mine and own + 1 >= greatest:
                break
        if self._end_one_of(addresses, own, client):
            addresses.add(whose, client)
            return True
        return mine is not None and self._end(mine)

    def _young(self) -> Iterator[Undecided]:
        """Go through the undecided hellos whose end gives something."""
        return (one for one in islice(self._undecided, LOOKED_AT) if not one.lent)

    def _make_room_for_host(self, whose: str, client: SocketType) -> bool:
        hosts, enough = self._known.hosts, self.balance() + 2
        own = hosts.count(whose)
        if not self._end_one_of(hosts, own, client):
            return False
        hosts.add(whose, client)
        # Two were lent, and who has no backend has but one.
        if self.balance() < enough and self.lacking():
            self._end_one_of(hosts, own, client)
            self.restore()
        return True

    def _end_one_of_the_most(self) -> bool:
        """End one of who has the most, for somebody who is not known yet: of the host, where
        addresses tell nothing."""
        known = self._known
        one = len(known.addresses) == 1
        return (one and self._end_one_of(known.hosts, 0)) or self._end_one_of(known.addresses, 0)

    def _end_one_of(self, holdings: Holdings, own: int, newcomer: SocketType | None = None) -> bool:
        victim = holdings.take(own, self._last)
        if victim is not None and victim is newcomer:
            victim = holdings.take(own, self._last)
        holder = None if victim is None else self._holder(victim)
        if holder is None:
            return False
        self._log.warning("descriptors_dealt_out")
        return self._end(holder)

    def _end(self, holder: Holder) -> bool:
        self._returned += _is_lent(holder)
        if isinstance(holder, End):
            self._poller.guard(holder, partial(holder.relay.end, holder, "outbid"))
        else:
            self._poller.guard(holder, holder.evict)
        return True

    def _last(self, client: SocketType) -> tuple[int, float]:
        """Order clients: who has no backend yet is ended first, then who is idle for longest. What
        is lent to the others is no gain."""
        holder = self._holder(client)
        waits = -1 if holder is not None and _is_lent(holder) else int(hasattr(holder, "undecided"))
        milliseconds = idle(client)
        if milliseconds is not None:
            return waits, milliseconds
        moved, since = self._known.moved.get(client, (-1, 0.0))
        return waits, self._clock() - since if moved == _moved(holder) else 0.0

    # Counting.

    def _census(self) -> Census:
        """Count anew where it is time; give the last census, empty before the first."""
        known, came = self._known, self._came()
        now = self._asked_at = self._clock()
        stale = came - known.came > len(self._clients) // STALE + FEW
        if not self._uncounted and (stale or now >= self._due):
            self._sweep.wake()
            self._next, self._spent = Census(came), 0.0
            self._uncounted = list(self._clients)
            if stale:  # nobody is ended by it
                known.addresses, known.hosts = Holdings(), Holdings()
            self._count()
        return self._known

    def _count(self) -> None:
        """Count a slice."""
        begin = self._clock()
        known, census = self._known, self._next
        addresses = census.addresses
        for _ in range(min(SLICE, len(self._uncounted))):
            client = self._uncounted.pop()
            holder = self._holder(client)
            if holder is None or (_is_lent(holder) and not _wanted(holder)):
                continue  # it is over, only begins, or has nothing to lose
            try:
                whose = network(address_of(holder, client))
                addresses.put(whose, client)
                if len(addresses) == 1:
                    census.put(holder, client)
            except OSError:  # about to be over
                continue
            if client.family == _UNIX:
                then, now = known.moved.get(client), _moved(holder)
                census.moved[client] = then if then and then[0] == now else (now, begin)
        if not self._uncounted:
            census.compare()
            self._known = census
        end = self._clock()
        self._spent += end - begin
        self._due = end + REST * self._spent

    def _go_on(self) -> bool:
        """Count on, see to the spares, and forget what nobody asks for; say whether to go on."""
        if self._uncounted:
            self._count()
            return True
        if self._asked_at + FORGET > self._clock():
            self.restore()
            return True
        self._known = self._next = Census()
        return self.restore() > 0

    def _holder(self, client: SocketType) -> Holder | None:
        return cast("Holder | None", self._poller.watcher(client.fileno()))


def _is_lent(holder: Holder) -> bool:
    return getattr(holder, "lent", False)


def _wanted(holder: Holder) -> str:
    """Give the name for which one is about to get a backend, if it is."""
    return getattr(holder, "host", "") if getattr(holder, "asks", False) else ""


def address_of(holder: Holder, client: SocketType) -> SocketAddress:
    """Give a client's address: as it was told, else its socket's."""
    known: object = holder.record if isinstance(holder, End) else holder
    if hasattr(known, "client_address"):
        return cast("SocketAddress", known.client_address())
    return cast("SocketAddress", client.getpeername())


def _moved(holder: Holder | None) -> int:
    """Give the bytes of a relayed connection, both ways."""
    return holder.moved + holder.peer.moved if isinstance(holder, End) else 0
