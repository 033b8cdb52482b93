"""Repeats: lines that somebody may cause at any rate, each written once a period and then counted.

Two lines are the same if all their words are, which name the host and the reason. What is not
written is counted and reported when the period is over, so that the sums are right. The table is
bounded, since there may be thousands of hosts: those that find no room share one row for each kind
of event. Nobody's hosts take all the room there is.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

PERIOD: Final = 60.0
"""Seconds from a line to the report of all that came meanwhile."""

MAX_ROWS: Final = 256
"""Lines in a period that have a row of their own."""

MOST_OF_ONE: Final = MAX_ROWS // 8
"""The same of lines on one account."""

MAX_BYTES: Final = 64 * 1024
"""Bytes of all their words."""

MAX_WORDS: Final = 1024
"""Characters by which lines are told apart: a host name of the greatest length leaves 700."""


class Repeats:
    """The lines of this period with their priority, and how often each came again."""

    __slots__ = ("_of_one", "_rows", "_size")

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str], int] = {}
        self._size = 0
        self._of_one: Counter[object] = Counter()

    def first(self, priority: int, event: str, words: str, account: object = None) -> bool:
        """Count a line of an event, on somebody's ``account`` where somebody could cause any number
        of them; say whether it is the first of its row, and to be written."""
        row = priority, words[:MAX_WORDS]
        if row not in self._rows:
            size = self._size + len(row[1])
            room = len(self._rows) < MAX_ROWS and size <= MAX_BYTES
            if room and (account is None or self._of_one[account] < MOST_OF_ONE):
                self._size = size
                self._of_one[account] += 1
            else:
                row = priority, f"event={event} others=yes"
        seen = row in self._rows
        self._rows[row] = self._rows[row] + 1 if seen else 0
        return not seen

    def take(self) -> Iterator[tuple[int, str, int]]:
        """Give the lines that came again, with their words and how often; begin anew."""
        rows, self._rows, self._size = self._rows, {}, 0
        self._of_one.clear()
        for (priority, words), count in rows.items():
            if count:
                yield priority, words, count
