"""A clock that a test moves by hand, for what takes time."""

import heapq
from collections.abc import Callable


class Clock:
    """The time, and what is to be called when: again after the seconds that a call gives."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], float | None]]] = []
        self._count = 0

    def later(self, seconds: float, call: Callable[[], float | None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + seconds, self._count, call))

    def advance(self, seconds: float) -> None:
        """Let time pass; call what is due, at its time."""
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.next_one()
        self.now = end

    def next_one(self) -> None:
        """Let time pass until the next thing is due, and call it."""
        self.now, _, call = heapq.heappop(self._due)
        again = call()
        if again is not None:
            self.later(again, call)

    @property
    def timers(self) -> int:
        return len(self._due)

    @property
    def next(self) -> float:
        """When the next thing is due."""
        return self._due[0][0]
