"""Repeats: lines that somebody may cause at any rate, each written once a period and then counted.

Two lines are the same if all their words are, which name the host and the reason. What is not
written is counted and reported when the period is over, so that the sums are right. The table is
bounded, since there may be thousands of hosts: those that find no room share one row for each kind
of event.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

PERIOD: Final = 60.0
"""Seconds from a line to the report of all that came meanwhile."""

MAX_ROWS: Final = 256
"""Lines in a period that have a row of their own."""

MAX_BYTES: Final = 64 * 1024
"""Bytes of all their words."""

MAX_WORDS: Final = 1024
"""Characters by which lines are told apart: a host name of the greatest length leaves 700."""

P = TypeVar("P")


class Repeats(Generic[P]):
    """The lines of this period with their priority, and how often each came again."""

    __slots__ = ("_others", "_rows", "_size")

    def __init__(self) -> None:
        self._rows: dict[tuple[P, str], int] = {}
        self._others: dict[tuple[P, str], int] = {}
        self._size = 0

    def first(self, priority: P, event: str, words: str) -> bool:
        """Count a line of an event; say whether it is the first of its row, and to be written."""
        words = words[:MAX_WORDS]
        rows, row = self._rows, (priority, words)
        if row not in rows:
            if len(rows) < MAX_ROWS and self._size + len(words) <= MAX_BYTES:
                self._size += len(words)
            else:
                rows, row = self._others, (priority, f"event={event} others=yes")
        seen = row in rows
        rows[row] = rows[row] + 1 if seen else 0
        return not seen

    def take(self) -> Iterator[tuple[P, str, int]]:
        """Give the lines that came again, with their words and how often; begin anew."""
        tables = self._rows, self._others
        self._rows, self._others, self._size = {}, {}, 0
        for table in tables:
            for (priority, words), count in table.items():
                if count:
                    yield priority, words, count
