"""Whose turn it is to accept: the connections that each worker has taken, where all can see them.

The kernel's row of sleeping workers shares them evenly while they come one by one. In a burst the
scheduler decides, and goes on deciding in favour of the same ones: whoever has a CPU takes what
there is. So one who is ahead lets the others have a go first, for a moment: that costs a burst a
millisecond, and each who does not come in time (hung, stopped, without a descriptor) no more than a
few. Who has not come for long is not owed all that: it is to have its share of what comes.
"""

import mmap

LEAD = 8
"""Connections that a worker may have taken more than another and still take the next."""

MOMENT = 0.001
"""Seconds that the others have the queue to themselves."""

MOMENTS = 4
"""How often one waits for a worker that takes nothing."""

MOST_BEHIND = 8 * LEAD
"""Connections that a worker is behind the first at most; what it has missed beyond is forgotten."""


class Tally:
    """The counts of ``workers`` processes, in memory that all of them share if it is made before
    they are forked (mmap(2), MAP_SHARED). Each writes its own only."""

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * workers)).cast("Q")
        self._number = self._before = 0
        self._seen = [0] * workers
        self._moments = [0] * workers

    def join(self, number: int) -> None:
        """Be worker ``number``. One who comes later begins as who has taken the most."""
        self._number = number
        self._before = self._counts[number] = max(self._counts)

    def count(self, accepted: int) -> None:
        """Say how many this worker has taken since it has joined."""
        missed = max(self._counts) - MOST_BEHIND - self._before - accepted
        if missed > 0:
            self._before += missed
        self._counts[self._number] = self._before + accepted

    def ahead(self) -> bool:
        """Say whether the others are to have a moment for themselves."""
        least = self._counts[self._number] - LEAD
        ahead = False
        for number, count in enumerate(self._counts):
            if count != self._seen[number]:
                self._seen[number], self._moments[number] = count, 0
            if count <= least and self._moments[number] < MOMENTS:
                self._moments[number] += 1
                ahead = True
        return ahead
