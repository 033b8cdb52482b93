"""The service manager: what it is told, and what it keeps for us, sd_notify(3)."""

import errno
import os
import select
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

BARRIER = 3.0
"""Seconds that the manager has to act on what it was sent."""

CANARY = "sniproxy-canary"
"""What descriptors are called that are stored for a moment only, to see whether they are kept."""

CLOSING = 0.1
"""Seconds that the manager has to close what it does not keep: it does that in the background."""

_MOST_AT_ONCE = 253
"""Descriptors of one message (SCM_MAX_FD, unix(7))."""


def notify(state: str, environment: Mapping[str, str]) -> None:
    """Send one assignment such as ``READY=1`` to NOTIFY_SOCKET, if set. Failure does not matter."""
    try:
        _send(state, environment)
    except (OSError, ValueError):
        pass


def _send(state: str, environment: Mapping[str, str], descriptors: Sequence[int] = ()) -> None:
    """Send assignments, a line each, with descriptors. Raises OSError, ValueError."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(BARRIER if descriptors else 0)
        manager.connect(address)
        socket.send_fds(manager, [state.encode("ascii")], list(descriptors))


class Store:
    """The manager's file descriptor store (FileDescriptorStoreMax=, systemd.service(5)), which
    outlives us when we are restarted."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.managed = bool(environment.get("NOTIFY_SOCKET"))
        """Whether there is a manager at all, whatever it keeps."""
        self._room = 0

    def try_room(self, count: int) -> Callable[[], bool]:
        """Begin to see whether it takes ``count`` more descriptors; give what says it ``CLOSING``
        seconds later, again if it is asked again.

        Nobody says how many it keeps, and what it does not keep it closes without a word. So store
        one end of as many pairs, and look whether the other ends have been hung up.
        """
        if not self.managed or count > _MOST_AT_ONCE:
            return lambda: False
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            pairs.extend(socket.socketpair() for _ in range(count))
            numbers = [their.fileno() for _, their in pairs]
            _send(f"FDSTORE=1\nFDNAME={CANARY}", self._environment, numbers)
            for _, their in pairs:
                their.close()
            settled = self.settle()
        except (OSError, ValueError):
            settled = False

        def kept() -> bool:
            nonlocal settled
            poll = select.poll()
            for our, _ in pairs:
                poll.register(our, 0)
            settled = settled and not poll.poll(0)
            self._room = count if settled else 0
            self.remove([CANARY])
            while pairs:
                for one in pairs.pop():
                    one.close()
            return settled

        return kept

    def put(self, descriptor: int, name: str) -> None:
        """Have a descriptor kept under a name, though its other end be closed. Raises OSError, also
        where that is one more than there was room for: it would be closed without a word."""
        if not self._room:
            raise OSError(errno.ENOSPC, "more parcels than the service manager has room for")
        room, self._room = self._room, 0
        _send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", self._environment, [descriptor])
        # Where that failed, more would each be waited for as long.
        self._room = room - 1

    def remove(self, names: Iterable[str]) -> None:
        """Have it forget what it keeps under these names."""
        for name in names:
            notify(f"FDSTOREREMOVE=1\nFDNAME={name}", self._environment)

    def settle(self) -> bool:
        """Wait until it has acted on all that it was sent; say whether it has, in time."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                _send("BARRIER=1", self._environment, [theirs])
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(ours, 0)
            return bool(poll.poll(BARRIER * 1000))
        except (OSError, ValueError):
            return False
        finally:
            os.close(ours)
