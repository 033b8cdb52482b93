"""Sweeps, which run only while somebody owes us something.

A ``Countdown`` holds what must happen within one fixed time, oldest first; ``Leaving`` holds what
may take as long as it gets on; a ``Sweep`` looks at such things now and then, coarsely, and stops
by itself. So no connection has a timer of its own, and a proxy at rest never wakes up.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Generic, Protocol, TypeVar

from sniproxy.dataplane.poller import Watcher
from sniproxy.dataplane.timers import Later

T = TypeVar("T")


class Sweep:
    """Call ``sweep`` every ``interval`` seconds from ``wake`` on, for as long as it says True."""

    __slots__ = ("_interval", "_later", "_sweep", "_woken", "running")

    def __init__(self, later: Later, interval: float, sweep: Callable[[], bool]) -> None:
        self._later = later
        self._interval = interval
        self._sweep = sweep
        self._woken = False
        self.running = False

    def wake(self) -> None:
        self._woken = True
        if not self.running:
            self._later(self._interval, self._run)
            self.running = True

    def _run(self) -> float | None:
        self._woken = False
        if self._sweep() or self._woken:
            return self._interval
        self.running = False
        return None


class Countdown(Generic[T]):
    """Items that each have ``seconds`` from their start until ``expire`` is called with them: again
    where it has raised. It may stop and start one: that one has its time anew."""

    __slots__ = ("_deadlines", "_expire", "_in_order", "_latest", "_seconds")

    def __init__(self, seconds: float, expire: Callable[[T], object]) -> None:
        self._seconds = seconds
        self._expire = expire
        self._deadlines: OrderedDict[T, float] = OrderedDict()
        self._latest = float("-inf")
        self._in_order = True

    def __len__(self) -> int:
        return len(self._deadlines)

    def start(self, item: T, now: float) -> None:
        """Start an item's time at ``now``. That is before the last one's only for what another
        process has begun, many at once: so they are put in order when somebody looks."""
        deadline = self._deadlines[item] = now + self._seconds
        if deadline < self._latest:
            self._in_order = False
        else:
            self._latest = deadline

    def stop(self, item: T) -> None:
        self._deadlines.pop(item, None)

    def __iter__(self) -> Iterator[T]:
        """Go through them, the oldest first."""
        self._sort()
        return iter(self._deadlines)

    def oldest(self) -> T | None:
        return next(iter(self), None)

    def sweep(self, now: float) -> bool:
        """Expire what is due; say whether anything is left."""
        self._sort()
        while self._deadlines:
            item, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                break
            self._expire(item)
            if self._deadlines.get(item) == deadline:
                del self._deadlines[item]
        return bool(self._deadlines)

    def _sort(self) -> None:
        if not self._in_order:
            self._deadlines = OrderedDict(sorted(self._deadlines.items(), key=itemgetter(1)))
            self._in_order = True


class Leaver(Watcher, Protocol):
    """Who is to be gone soon, but for bytes that are still being taken."""

    def taken(self) -> int:
        """Give a number that changes when a byte is taken, and when nothing else happens."""

    def patience(self) -> float:
        """Give the seconds that may pass, as things are, without a byte being taken."""

    def expire(self) -> None:
        """End it: it stands still. It stops leaving by that."""


class Leaving:
    """Those who are to be gone soon, and since when nothing of theirs has been taken.

    They are looked at every ``interval`` seconds, and cost nothing in between.
    """

    __slots__ = ("_clock", "_expire", "_leavers", "_sweep")

    def __init__(
        self,
        later: Later,
        interval: float,
        clock: Callable[[], float],
        expire: Callable[[Leaver], object],
    ) -> None:
        self._clock = clock
        self._expire = expire
        self._leavers: dict[Leaver, tuple[int, float] | None] = {}
        """What each had taken at the last look, and since when; None before the first."""
        self._sweep = Sweep(later, interval, self.sweep)

    def __len__(self) -> int:
        return len(self._leavers)

    def __contains__(self, leaver: Leaver) -> bool:
        return leaver in self._leavers

    def start(self, leaver: Leaver) -> None:
        """Look at one from now on, unless that is so already. Most are gone before the first look,
        so that the time is left to it."""
        # The sweep first: where it can't be had, nothing has begun.
        if not self._sweep.running:
            self._sweep.wake()
        self._leavers.setdefault(leaver)

    def stop(self, leaver: Leaver) -> None:
        self._leavers.pop(leaver, None)

    def sweep(self) -> bool:
        """End those who have stood still for too long; say whether any are left."""
        now = self._clock()
        for leaver, last in list(self._leavers.items()):
            taken = leaver.taken()
            if last is None or last[0] != taken:
                self._leavers[leaver] = (taken, now)
            elif now - last[1] >= leaver.patience():
                self._expire(leaver)
        return bool(self._leavers)
