"""Hourly lines: a connection that lasts has a line once an hour, and not only when it is over.

A wheel with a place for each ten seconds of an hour holds those who are to have them, each where
its accept falls: so nothing is put in order, and nothing moves while an hour goes by. When a place
is past, who is in it has completed an hour, or has just begun. The clock is the system's and the
same in all processes, so that after a hand-over the next goes on where the last one was.
"""

from collections.abc import Callable
from typing import Final, Protocol

from sniproxy.dataplane.timers import Later

HOUR: Final = 3600.0
"""Seconds from the accept to the first line, and from one to the next."""

PLACE: Final = 10.0
"""Seconds of a place of the wheel. A line comes so much after its hour at most, where few do."""

PIECE: Final = 32
"""Lines in a row before events have their turn: a millisecond, and a tenth of what the log keeps
for a reader that is slow."""

PAUSE: Final = 0.01
"""Seconds from one piece to the next."""

_PLACES: Final = int(HOUR / PLACE)


class Lasting(Protocol):
    """What may last for hours."""

    accepted_at: float

    def log_open(self) -> None:
        """Log that it lasts."""


class Hourly:
    """Those who have a line each hour. They cost an entry each, and a look each ten seconds."""

    __slots__ = ("_clock", "_due", "_later", "_next", "_places", "_running")

    def __init__(self, later: Later, clock: Callable[[], float]) -> None:
        self._later = later
        self._clock = clock
        self._places: dict[int, dict[Lasting, None]] = {}
        """Those of each place that somebody is in."""
        self._next = 0
        """Which place is past next, counted from the beginning of the clock."""
        self._due: list[Lasting] = []
        """Whose line is still to be written, the next one last."""
        self._running = False

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    def start(self, one: Lasting) -> None:
        """Have one told of from its next full hour on. Done again, it changes nothing."""
        if not self._running:
            now = self._clock()
            self._next = int(now / PLACE)
            self._later(_rest(now), self._turn)
            self._running = True
        self._places.setdefault(_place(one), {})[one] = None

    def stop(self, one: Lasting) -> None:
        """Have one told of no more, if it was."""
        place = _place(one)
        here = self._places.get(place)
        if here is not None:
            here.pop(one, None)
            if not here:
                del self._places[place]

    def _turn(self) -> float | None:
        """Tell of those who are due, but not of too many; give the seconds to the next turn."""
        now = self._clock()
        past = int(now / PLACE)
        # Who was stopped for hours tells of each once.
        self._next = max(self._next, past - _PLACES)
        while self._next < past and not self._due:
            here = self._places.get(self._next % _PLACES, ())
            self._due = [one for one in here if now - one.accepted_at >= HOUR]
            self._due.reverse()
            self._next += 1
        for _ in range(min(PIECE, len(self._due))):
            one = self._due.pop()
            if one in self._places.get(_place(one), ()):  # else it is over by now
                one.log_open()
        if self._due or self._next < past:
            return PAUSE
        self._running = bool(self._places)
        return _rest(now) if self._running else None


def _place(one: Lasting) -> int:
    return int(one.accepted_at / PLACE) % _PLACES


def _rest(now: float) -> float:
    """Give the seconds until the place of a time is past."""
    return (int(now / PLACE) + 1) * PLACE - now
