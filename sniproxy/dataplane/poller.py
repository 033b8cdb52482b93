"""The poller: one epoll for the data plane and for asyncio.

It is the selector of the asyncio loop. Descriptors of the data plane have a ``Watcher``, which is
called right where its event arrives; no task, future, transport or handle is made for it. What
the loop itself has registered (its wake-up socket) is returned to it as any selector does.
Measured against descriptors given to ``loop.add_reader``, this takes a third off the CPU time of
a connection (docs/design.md).
"""

import select
import selectors
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
ERROR = select.EPOLLERR
HANG_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
"""Any of these says: read until nothing is left, no further event will come. A read stops short at
TCP's urgent byte (EPOLLPRI), though more has arrived behind it."""

GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Any of these says that who is at the other end sends no more, or is not there any more."""

_EDGES = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
_MAX_EVENTS = 256


def hang_up(fd: int) -> int:
    """Ask the kernel which of ``GONE`` are so of a stream socket now, whatever an event said."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return sum(mask for _, mask in poll.poll(0)) & GONE


class Watcher(Protocol):
    """What is called when something happened on a descriptor of the data plane.

    An event is a hint and may be stale (the descriptor was closed and used anew within one turn):
    only what a system call on the socket itself says may be believed.
    """

    def ready(self, mask: int) -> None:
        """Act on the EPOLL* bits of ``mask``."""

    def resume(self) -> None:
        """Go on with what the last turn's budget left undone."""

    def abandon(self) -> None:
        """End the connection after an exception that nobody expected."""

    def stop(self) -> bool:
        """End the connection since the process ends; say whether it was this watcher's to end."""


class Poller(selectors.BaseSelector):
    """An epoll whose descriptors belong to watchers or else to the asyncio loop.

    ``fault`` is told of every exception that a watcher raised; the watcher is abandoned.
    """

    def __init__(self, fault: Callable[[Exception], None]) -> None:
        self._epoll = select.epoll()
        self._register = self._epoll.register
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._watchers: list[Watcher | None] = []
        self._unfinished: dict[Watcher, None] = {}
        self._fault = fault
        self.turn = 0
        """How often the poller has looked for events."""

    # The data plane.

    def watch(self, fd: int, watcher: Watcher, *, write: bool = False) -> None:
        """Register a stream socket, edge-triggered. What is there already counts as an event."""
        self._register(fd, _EDGES | WRITE if write else _EDGES)
        try:
            self._watchers[fd] = watcher
        except IndexError:
            self._make_room(fd)
            self._watchers[fd] = watcher

    def watch_listener(self, fd: int, watcher: Watcher, *, shared: bool) -> None:
        """Register a listening socket, level-triggered: who shares it may leave us the rest.

        Of several workers that have registered it as ``shared``, a connection wakes only one: the
        first that waits, in the order in which they registered.
        """
        self._register(fd, READ | select.EPOLLEXCLUSIVE if shared else READ)
        self._make_room(fd)
        self._watchers[fd] = watcher

    def replace(self, fd: int, watcher: Watcher) -> None:
        """Hand a registered descriptor to another watcher, at no system call."""
        self._watchers[fd] = watcher

    def await_write(self, fd: int, *, write: bool) -> None:
        """Add or remove the wish for EPOLLOUT; either way what is there now counts as an event."""
        self._epoll.modify(fd, _EDGES | WRITE if write else _EDGES)

    def forget(self, fd: int) -> None:
        """Drop the watcher of a descriptor that is closed next (closing leaves the epoll)."""
        self._watchers[fd] = None

    def unwatch(self, fd: int) -> None:
        """Unregister a descriptor that stays open, here or in another process."""
        self._epoll.unregister(fd)
        self._watchers[fd] = None

    def again(self, watcher: Watcher) -> None:
        """Resume a watcher in the next turn, after the others have had theirs."""
        self._unfinished[watcher] = None

    def watchers(self) -> list[Watcher]:
        """List all watchers that have a descriptor now."""
        return [watcher for watcher in self._watchers if watcher is not None]

    def _make_room(self, fd: int) -> None:
        watchers = self._watchers
        watchers.extend([None] * (fd + 64 - len(watchers)))

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve the data plane's events; return the loop's own. ``timeout`` in seconds."""
        if self._unfinished or (timeout is not None and timeout < 0):
            timeout = 0
        self.turn += 1
        of_the_loop: list[tuple[selectors.SelectorKey, int]] = []
        watchers = self._watchers
        for fd, mask in self._epoll.poll(timeout, _MAX_EVENTS):
            watcher = watchers[fd]
            if watcher is not None:
                try:
                    watcher.ready(mask)
                except Exception as error:  # one connection ends here, no more
                    self._abandon(watcher, error)
            elif fd in self._keys:
                key = self._keys[fd]
                events = (mask & ~WRITE and selectors.EVENT_READ) | (
                    mask & ~READ and selectors.EVENT_WRITE
                )
                if events & key.events:
                    of_the_loop.append((key, events & key.events))
        if self._unfinished:
            turn, self._unfinished = self._unfinished, {}
            for watcher in turn:
                try:
                    watcher.resume()
                except Exception as error:  # as above
                    self._abandon(watcher, error)
        return of_the_loop

    def _abandon(self, watcher: Watcher, error: Exception) -> None:
        self._fault(error)
        try:
            watcher.abandon()
        except Exception as another:  # as above
            self._fault(another)

    # The loop's side: selectors.BaseSelector, for the few descriptors of asyncio itself.

    def register(
        self, fileobj: "FileDescriptorLike", events: int, data: Any = None
    ) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        bits = (events & selectors.EVENT_READ and READ) | (events & selectors.EVENT_WRITE and WRITE)
        self._epoll.register(fd, bits)
        self._make_room(fd)
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys.pop(fd)
        self._epoll.unregister(fd)
        return key

    def get_map(self) -> Mapping["FileDescriptorLike", selectors.SelectorKey]:
        return self._keys  # type: ignore[return-value]  # asyncio registers plain descriptors

    def close(self) -> None:
        self._epoll.close()
        self._keys.clear()
        self._watchers.clear()
        self._unfinished.clear()
