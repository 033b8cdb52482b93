"""Timers: what is to be called when, by the poller, between events.

A timer stays where it is until what it calls has returned: an exception, for want of memory above
all, loses none, it is called again. Who wants to be called once more says so by what it returns, so
that nothing of ours has to be armed anew at the end of its work, where that could fail.
"""

import heapq
import itertools
from collections.abc import Callable

Call = Callable[[], "float | None"]
"""What a timer calls: gives the seconds to its next call, None where it is over."""

Later = Callable[[float, Call], object]
"""Call a function after so many seconds: ``Timers.later``. Where that fails, nothing was done."""

NO_MEMORY = (MemoryError, SystemError)
"""What Python raises for want of memory. The second where it finds none for a call and does not say
what is the matter (the stack of frames in 3.11): then nobody knows how far that call has come."""

LONGEST = 0.005
"""Seconds of timers in a row, before events have their turn."""

AFTER_A_FAULT = 1.0
"""Seconds to the next call of what has raised an exception that nobody expected."""


class Timers:
    """The timers of a process, by its clock."""

    __slots__ = ("_clock", "_fault", "_number", "heap")

    def __init__(self, clock: Callable[[], float], fault: Callable[[Exception], None]) -> None:
        self._clock = clock
        self._fault = fault
        self.heap: list[tuple[float, int, Call]] = []
        # Between two that are due at the same time: in the order of their setting.
        self._number = itertools.count()

    def later(self, seconds: float, call: Call) -> None:
        heapq.heappush(self.heap, (self._clock() + seconds, next(self._number), call))

    def wait(self, most: float | None) -> float | None:
        """Call what is due; give the seconds until something else is, or ``most`` where that is
        sooner. MemoryError goes through: the same is called at the next time."""
        heap = self.heap
        if heap:
            now = self._clock()
            seconds = heap[0][0] - now
            if seconds <= 0:
                self._run(now)
                # It may have brought anything about that is to be seen first.
                return 0
            if most is None or seconds < most:
                return seconds
        return most

    def _run(self, now: float) -> None:
        heap = self.heap
        for _ in range(len(heap)):
            due, _, call = heap[0]
            if due > now:
                return
            try:
                again = call()
            except NO_MEMORY:
                raise
            except Exception as error:  # of this timer, no more
                self._fault(error)
                again = AFTER_A_FAULT
            # It is still the first: what was set meanwhile is due later.
            if again is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (now + again, next(self._number), call))
            if self._clock() > now + LONGEST:
                return  # the rest, after what has happened meanwhile
