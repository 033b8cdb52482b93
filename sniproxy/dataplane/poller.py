"""The poller: one epoll, and the loop of a process around it.

Each descriptor has a ``Watcher``, which is called right where its event arrives; no task, future,
transport or handle is made for it. Timers are called between events.

Whatever fails in a turn, for want of memory above all, the next one makes good. A watcher that has
raised is abandoned, again and again until that has worked. An event that may have been lost on its
way (epoll tells of an edge only once) is made up for by telling every watcher to look.
"""

import select
import time
from collections.abc import Callable
from typing import Protocol

from sniproxy.dataplane.timers import NO_MEMORY, Timers

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
ERROR = select.EPOLLERR
GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Any of these says that who is at the other end sends no more, or is not there any more."""

HANG_UP = GONE | select.EPOLLPRI
"""Any of these says: read until nothing is left, no further event will come. A read stops short at
TCP's urgent byte (EPOLLPRI), though more has arrived behind it."""

RECOVERY = 0.01
"""Seconds that a turn which has failed leaves to whatever holds the memory."""

_EDGES = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
_SHARED = READ | select.EPOLLEXCLUSIVE
_ANYTHING = READ | WRITE | HANG_UP
_MAX_EVENTS = 256
_NESTED = 8
"""Watchers that can be at work within each other: a listener's arrival ends another, say."""


def hang_up(fd: int) -> int:
    """Ask the kernel which of ``GONE`` are so of a stream socket now, whatever an event said."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return sum(mask for _, mask in poll.poll(0)) & GONE


class Watcher(Protocol):
    """What is called when something happened on a descriptor.

    An event is a hint and may be stale (the descriptor was closed and used anew within one turn):
    only what a system call on the socket itself says may be believed.
    """

    def ready(self, mask: int) -> None:
        """Act on the EPOLL* bits of ``mask``."""

    def resume(self) -> None:
        """Go on with what the last turn's budget left undone."""

    def abandon(self) -> None:
        """End the connection after an exception that nobody expected, wherever that has left it.
        Called again where it has raised MemoryError."""

    def stop(self) -> bool:
        """End the connection since the process ends; say whether it was this watcher's to end."""


class Poller:
    """An epoll whose descriptors belong to watchers.

    ``fault`` is told of every exception that nobody expected.
    """

    def __init__(
        self, fault: Callable[[Exception], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._epoll = select.epoll()
        self._register = self._epoll.register
        self._watchers: list[Watcher | None] = []
        self._unfinished: dict[Watcher, None] = {}
        self._fault = fault
        # Those that are still to be abandoned. Made now: to note one must not need memory.
        self._broken: list[Watcher | None] = [None] * _NESTED
        self._broken_count = 0
        self.timers = Timers(clock, fault)
        # Their own list: a turn without timers is to cost no call.
        self._timed = self.timers.heap
        self.missed = False
        """Whether an event may have been lost, or could not be acted on for want of memory."""
        self.ending = True
        """Whether it may be the end."""
        self.turn = 0
        """How often the poller has looked for events."""

    def fileno(self) -> int:
        """Descriptor of the epoll: it can be read while there are events."""
        return self._epoll.fileno()

    def watch(self, fd: int, watcher: Watcher, *, watched: bool = False) -> None:
        """Register a stream socket, edge-triggered: what is there already counts as an event. One
        that is ``watched`` already is handed to another watcher, at no system call."""
        if watched:
            self._watchers[fd] = watcher
        else:
            self._enter(fd, watcher, _EDGES)

    def watch_listener(self, fd: int, watcher: Watcher, *, shared: bool) -> None:
        """Register a listening socket, level-triggered: who shares it may leave us the rest.

        Of several workers that have registered it as ``shared``, a connection wakes only one: the
        first that waits, in the order in which they registered. Those before it, who do not wait,
        are told of it as well.
        """
        self._enter(fd, watcher, _SHARED if shared else READ)

    def requeue_listener(self, fd: int) -> None:
        """Go to the end of the row of workers that a connection may wake; what waits is still an
        event. Where this fails, it is watched no longer."""
        self._epoll.unregister(fd)
        self._register(fd, _SHARED)

    def attend(self, fd: int, call: Callable[[], object]) -> None:
        """Call a function while there is something to be read, until ``unwatch``."""
        self._enter(fd, _Attendant(self, call), READ)

    def _enter(self, fd: int, watcher: Watcher, events: int) -> None:
        try:
            self._watchers[fd] = watcher
        except IndexError:
            self._watchers.extend([None] * (fd + 64 - len(self._watchers)))
            self._watchers[fd] = watcher
        try:
            self._register(fd, events)
        except Exception:
            self._watchers[fd] = None
            raise

    def await_write(self, fd: int, *, write: bool) -> None:
        """Add or remove the wish for EPOLLOUT; either way what is there now counts as an event."""
        self._epoll.modify(fd, _EDGES | WRITE if write else _EDGES)

    def forget(self, fd: int) -> None:
        """Drop the watcher of a descriptor, if it has one, that is closed next (closing leaves the
        epoll)."""
        if 0 <= fd < len(self._watchers):
            self._watchers[fd] = None

    def unwatch(self, fd: int) -> None:
        """Unregister a descriptor that stays open, here or in another process, if it is there."""
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):  # not yet, or no longer
            pass
        self.forget(fd)

    def again(self, watcher: Watcher) -> None:
        """Resume a watcher in the next turn, after the others have had theirs."""
        self._unfinished[watcher] = None

    def watchers(self) -> list[Watcher]:
        """List all watchers that have a descriptor now."""
        return [watcher for watcher in self._watchers if watcher is not None]

    def some(self, first: int, count: int) -> "list[Watcher | None]":
        """Give the watchers of descriptors from ``first`` on, as many as there are of ``count``
        numbers: none behind the last."""
        return self._watchers[first : first + count]

    def watcher(self, fd: int) -> Watcher | None:
        """Give the watcher of a descriptor (negative: a closed one), if it has one."""
        return self._watchers[fd] if 0 <= fd < len(self._watchers) else None

    def strangers(self) -> list[int]:
        """List the numbers, of descriptors or free, that have no watcher; all others are above."""
        return [fd for fd, watcher in enumerate([*self._watchers, *[None] * 64]) if watcher is None]

    # The loop.

    def run(self, over: Callable[[], bool]) -> None:
        """Take turns until ``over``, which is asked before each while there is an ``ending``, says
        so."""
        failures: list[Exception | None] = [None]
        while True:
            try:
                if self.missed:
                    time.sleep(RECOVERY)
                    failure, failures[0] = failures[0], None
                    if failure is not None:
                        self._fault(failure)
                    # It holds all that was at hand where it was raised, descriptors among it.
                    failure = None
                if self.ending and over():
                    return
                self.select()
            except Exception as error:  # of the turn itself: the next one makes it good
                self.missed = True
                failures[0] = error

    def select(self, timeout: float | None = None) -> None:
        """Take one turn: call what is due, wait for events for at most ``timeout`` seconds, and
        serve them."""
        if self.missed:
            self._mend()
            self._look_everywhere()
            return  # what that has found may be the end
        if self._timed:
            timeout = self.timers.wait(timeout)
        if self._unfinished:
            timeout = 0
        self.turn += 1
        watchers = self._watchers
        for fd, mask in self._epoll.poll(timeout, _MAX_EVENTS):
            watcher = watchers[fd]
            if watcher is not None:
                try:
                    watcher.ready(mask)
                except Exception as error:  # one connection ends here, no more
                    # Nothing of these two can fail.
                    self._broken[self._broken_count] = watcher
                    self._broken_count += 1
                    self._mend(error)
        if self._unfinished:
            turn, self._unfinished = self._unfinished, {}
            for watcher in turn:
                self.guard(watcher, watcher.resume)

    def guard(self, watcher: Watcher, act: Callable[..., object], *arguments: object) -> bool:
        """Do something of a watcher's: what it raises is the end of that one, and no more. Say
        whether it was done."""
        try:
            act(*arguments)
        except Exception as error:  # one connection ends here, no more
            self._broken[self._broken_count] = watcher
            self._broken_count += 1
            self._mend(error)
            return False
        return True

    def _mend(self, error: Exception | None = None) -> None:
        """Abandon those that have raised. MemoryError goes through, to the end of this turn: until
        they have been, nothing else is served."""
        while self._broken_count:
            watcher = self._broken[self._broken_count - 1]
            try:
                if watcher is not None:
                    watcher.abandon()
            except NO_MEMORY:
                self.missed = True
                raise
            except Exception as another:  # as it is, it must do
                self._fault(another)
            self._broken_count -= 1
            self._broken[self._broken_count] = None
        if error is not None:
            self._fault(error)

    def _look_everywhere(self) -> None:
        """Tell every watcher what might have happened."""
        self.missed = False
        watchers = self._watchers
        for fd in range(len(watchers)):
            watcher = watchers[fd]
            if watcher is not None:
                self.guard(watcher, watcher.ready, _ANYTHING)

    def close(self) -> None:
        self._epoll.close()
        self._watchers.clear()
        self._unfinished.clear()


class _Attendant:
    """A watcher that only calls a function."""

    __slots__ = ("_call", "_poller")

    def __init__(self, poller: Poller, call: Callable[[], object]) -> None:
        self._poller = poller
        self._call = call

    def ready(self, mask: int) -> None:  # noqa: ARG002 - it can only be read
        try:
            self._call()
        except NO_MEMORY:
            # It may have been read already, and is no event any more.
            self._poller.missed = True
            raise

    def resume(self) -> None:
        """Never called: what is left is a new event."""

    def abandon(self) -> None:
        """Go on: there is nothing else that would read this."""

    def stop(self) -> bool:
        return False
