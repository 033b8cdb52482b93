"""Loops: a host whose backend leads back to us, by a forwarder or as a link to our own socket.

Each connection to it becomes another one of ours, without end, and no backend ever answers. What
comes round is the same hello, so what counts is: connections to one host, open, not answered with
a single byte, whose hello had been seen before. Of these a host may have so many and no more, or
all hosts of a user together; who comes then waits until one is answered or ends, as in front of a
full accept queue, and whose time is up there is refused.

Clients make each hello with a random of its own (RFC 8446 section 4.1.2), so honest ones never
count. Programs that send a stored hello again and again do, and are served as fast as the backend
begins to answer.
"""

import resource
from collections.abc import Callable

from sniproxy.dataplane.relay import OVER, End

MOST = 512
"""Connections that may go round on one account, in each process; 2 descriptors each, so at most
..."""

SHARE = 8
"""... one for so many descriptors of the process: a quarter of them."""

REMEMBERED = 1024
"""Hellos since the last but one clearing of what was seen; the same again: some 200 kB at most. A
loop that comes round once in more connections is not seen, and grows no faster than these come."""

_RANDOM = slice(11, 43)
"""Where a hello has its random: after the headers of record (5) and message (4) and a version (2).
In a hello of smaller records something else stands there, the same each time as well."""

_FEW = 64
"""Connections that may be remembered though they are over."""


class Loops:
    """What one process knows of the hellos that came again. Hosts are named by their directories;
    ``account`` says on whose account one of them goes (``Hosts.account``)."""

    def __init__(self, account: Callable[[str], str | int]) -> None:
        self._account = account
        self._accounts: dict[str, str | int] = {}
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = max(1, min(MOST, descriptors // SHARE))
        self._recent: set[bytes] = set()
        self._before: set[bytes] = set()
        self._ends: dict[str, list[End]] = {}
        self._found: set[str | int] = set()
        self._count = 0
        self._sweep_at = _FEW

    def again(self, hello: bytes | bytearray | memoryview) -> bool:
        """Say whether a hello, of which all that came up to the host name is given, came before."""
        random = bytes(hello[_RANDOM])
        if random in self._recent:
            return True
        self._recent.add(random)
        known = random in self._before
        if len(self._recent) >= REMEMBERED:
            self._recent, self._before = set(), self._recent
        return known

    def note(self, host: str, client: End) -> None:
        """Remember a relayed connection whose hello came before, by its client's end."""
        self._ends.setdefault(host, []).append(client)
        self._count += 1
        if self._count >= self._sweep_at:
            self._ends = {name: left for name in self._ends if (left := self._unanswered(name))}
            self._accounts = {
                host: self._accounts[host] for host in self._ends if host in self._accounts
            }
            self._count = sum(map(len, self._ends.values()))
            self._sweep_at = max(_FEW, 2 * self._count)

    def full(self, host: str) -> bool:
        """Say whether there are as many unanswered connections as may go round, of this host and
        those on the same account."""
        if self._count >= self.most:
            account = self._account_of(host)
            together = [each for each in self._ends if self._account_of(each) == account]
            if sum(len(self._unanswered(each)) for each in together) >= self.most:
                return True
        if self._found:
            self._found.discard(self._account_of(host))
        return False

    def find(self, host: str) -> bool:
        """Note that time was up in front of a ``full`` host: nobody else waits there until it no
        longer is. Say whether that is new."""
        known = self.found(host)
        self._found.add(self._account_of(host))
        return not known

    def found(self, host: str) -> bool:
        return self._account_of(host) in self._found

    def _account_of(self, host: str) -> str | int:
        """Ask once, as long as the host is remembered."""
        account = self._accounts.get(host)
        if account is None:
            account = self._account(host)
            if host in self._ends:
                self._accounts[host] = account
        return account

    def _unanswered(self, host: str) -> list[End]:
        return [end for end in self._ends[host] if end.ended != OVER and not end.peer.moved]
