"""Relaying on a kernel that can't refuse descriptors (``hosts.SO_PASSRIGHTS``).

Nobody takes those that come with bytes: the kernel closes them at the end of the call that reads
the bytes, or that closes the socket with the bytes unread, and may sleep in that for as long as who
has passed them likes. The watchdog finds the long sleeps. But a hundred short ones, one after the
other, are as long, and nobody can tell them from a machine that is busy; so it is not the time that
counts here, but the flag by which the kernel says that there were some. No TLS library passes any.

It costs a microsecond a read, which is why it is for those kernels only.
"""

import errno
import os
from collections.abc import Callable
from socket import MSG_CTRUNC, MSG_DONTWAIT, SocketType
from typing import TYPE_CHECKING

from sniproxy.dataplane.ending import CLIENT_LOST
from sniproxy.dataplane.record import Record
from sniproxy.dataplane.relay import End, Relay

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PASSED = "backend_passed_descriptors"
"""How the log calls the end of a connection by them."""

_LOOKS = 4
"""Reads of what is left at the end, of as much as a socket usually holds."""

_LEFT = 256 * 1024

_DONT_WAIT = int(MSG_DONTWAIT)
_TRUNCATED = int(MSG_CTRUNC)


class WaryBackend(SocketType):
    """A socket in the place of a ``backend``'s, which it takes over."""

    __slots__ = ("_ended", "_passed")

    def __init__(self, backend: SocketType) -> None:
        super().__init__(fileno=backend.fileno())
        backend.detach()
        self._passed = False
        self._ended = False

    def recv_into(self, buffer: "WriteableBuffer", _size: int = 0, flags: int = 0, /) -> int:
        """Read into all of a buffer. Raises OSError (EBADMSG) where descriptors came along."""
        size, _, said, _ = self.recvmsg_into((buffer,), 0, flags)
        if said & _TRUNCATED:
            self._passed = True
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        if not size:
            self._ended = True
        return size

    def has_passed(self) -> bool:
        """Say whether descriptors came along, or lie in what nobody has read: that is gone then."""
        try:
            for _ in range(_LOOKS):
                if self._passed or self._ended:
                    break
                data, _, said, _ = self.recvmsg(_LEFT, 0, _DONT_WAIT)
                self._passed = said & _TRUNCATED != 0
                self._ended = not data
        except (OSError, MemoryError):  # nothing is there, or nothing to look with
            pass
        return self._passed


class WaryRelay(Relay):
    """A relay that looks at what backends pass. ``passed`` is called with the client's end of a
    connection that is over, for its backend has passed descriptors."""

    passed: Callable[[End], object] = staticmethod(lambda _client: None)

    def join(
        self, client: SocketType, backend: SocketType, record: Record | None, *, watched: bool
    ) -> End:
        return super().join(client, WaryBackend(backend), record, watched=watched)

    def end(self, client: End, how: str) -> None:
        one = client.peer.socket
        passed = isinstance(one, WaryBackend) and one.has_passed()
        super().end(client, PASSED if passed and how not in CLIENT_LOST else how)
        if passed:
            self.passed(client)
