"""Timers that run only while somebody owes us something.

A ``Countdown`` holds what must happen within one fixed time, oldest first; a ``Sweep`` looks at
such things now and then, coarsely, and stops by itself. So no connection has a timer of its own,
and a proxy at rest never wakes up.
"""

from collections import OrderedDict
from collections.abc import Callable
from operator import itemgetter
from typing import Generic, TypeVar

Later = Callable[[float, Callable[[], None]], object]
"""Call a function after so many seconds: ``loop.call_later``."""

T = TypeVar("T")


class Sweep:
    """Call ``sweep`` every ``interval`` seconds from ``wake`` on, for as long as it says True."""

    __slots__ = ("_interval", "_later", "_sweep", "running")

    def __init__(self, later: Later, interval: float, sweep: Callable[[], bool]) -> None:
        self._later = later
        self._interval = interval
        self._sweep = sweep
        self.running = False

    def wake(self) -> None:
        if not self.running:
            self.running = True
            self._later(self._interval, self._run)

    def _run(self) -> None:
        self.running = False
        if self._sweep():
            self.wake()


class Countdown(Generic[T]):
    """Items that each have ``seconds`` from their start until ``expire`` is called with them."""

    __slots__ = ("_deadlines", "_expire", "_in_order", "_latest", "_seconds")

    def __init__(self, seconds: float, expire: Callable[[T], None]) -> None:
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

    def oldest(self) -> T | None:
        self._sort()
        return next(iter(self._deadlines), None)

    def sweep(self, now: float) -> bool:
        """Expire what is due; say whether anything is left."""
        self._sort()
        while self._deadlines:
            item, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                break
            del self._deadlines[item]
            self._expire(item)
        return bool(self._deadlines)

    def _sort(self) -> None:
        if not self._in_order:
            self._deadlines = OrderedDict(sorted(self._deadlines.items(), key=itemgetter(1)))
            self._in_order = True
