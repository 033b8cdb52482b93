"""Whose turn it is to accept: the connections that each worker has taken, where all can see them.

The kernel's row of sleeping workers shares them evenly while they come one by one. In a burst the
scheduler decides, and goes on deciding in favour of the same ones: whoever has a CPU takes what
there is. So one who is ahead lets the others have a go first, for a moment: that costs a burst a
millisecond, and who does not come in time (hung, stopped, without a descriptor) no more than a few.
"""

import mmap

LEAD = 8
"""Connections that a worker may have taken more than another and still take the next."""

MOMENT = 0.001
"""Seconds that the others have the queue to themselves."""

MOMENTS = 4
"""How often one waits for a worker that takes nothing."""


class Tally:
    """The counts of ``workers`` processes, in memory that all of them share if it is made before
    they are forked (mmap(2), MAP_SHARED). Each writes its own only."""

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * workers)).cast("Q")
        self._number = self._before = 0
        self._last = self._moments = 0

    def join(self, number: int) -> None:
        """Be worker ``number``. One who comes later begins as who has taken the most: it is to have
        its share of what comes, not of what was."""
        self._number = number
        self._before = self._counts[number] = max(self._counts)

    def count(self, accepted: int) -> None:
        """Say how many this worker has taken since it has joined."""
        self._counts[self._number] = self._before + accepted

    def ahead(self) -> bool:
        """Say whether the others are to have a moment for themselves."""
        last = min(self._counts)
        if self._counts[self._number] < last + LEAD:
            return False
        if last != self._last:
            self._last, self._moments = last, 0
        self._moments += 1
        return self._moments <= MOMENTS
