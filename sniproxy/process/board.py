"""The board: memory that the warden shares with resolver processes and with those that ask them.

Each number is written by one process and read by others at any time, as a whole (it has 64 bits,
aligned). So a process that sleeps in the kernel, where nobody can ask it anything, has said before
what it is about; and who is about to wait learns why without a message.

All times are nanoseconds of the monotonic clock.
"""

import mmap
from collections.abc import Mapping
from time import monotonic_ns
from typing import NamedTuple

PLACES = 128
"""Resolver processes at most: 126 owners can do their worst at the same time."""

MOST_BARS = 256
"""Owners that are barred at the same time; more are not."""

HELD = 1
"""Trouble: the hosts directory itself is held, so that nothing can be looked up."""
NO_PROCESS = 1 << 32
"""Trouble: no process can be had; the errno is added to it."""

FOREVER = (1 << 63) - 1

_EPOCH, _TROUBLE, _COUNT, _BARS = range(4)
_OF_A_BAR = 4
_PLACES = _BARS + MOST_BARS * _OF_A_BAR
_OF_A_PLACE = 6


HANGING, SLOW, PASSING = range(3)
"""Why somebody is barred."""


class Bar(NamedTuple):
    """Between two times nobody goes into the entries of an ``owner``, for one of them that hangs
    (``why`` is ``HANGING``), the sum of many look-ups, or what their backends pass."""

    owner: int
    since: int
    until: int
    why: int = HANGING


class Board:
    """Made before the first fork; all who are forked then have the same."""

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, 8 * (_PLACES + PLACES * _OF_A_PLACE))).cast("Q")

    @property
    def epoch(self) -> int:
        """How many wardens there have been: who looks up for one of the others leaves."""
        return self._numbers[_EPOCH]

    def begin(self) -> int:
        """Forget everything, for a new warden; give its epoch."""
        epoch = self.epoch + 1
        for index in range(len(self._numbers)):
            self._numbers[index] = 0
        self._numbers[_EPOCH] = epoch
        return epoch

    @property
    def trouble(self) -> int:
        """Why nobody looks up now, 0 where somebody does."""
        return self._numbers[_TROUBLE]

    @trouble.setter
    def trouble(self, why: int) -> None:
        self._numbers[_TROUBLE] = why

    def bar(self, bars: Mapping[int, Bar]) -> None:
        """Write who is barred. Who reads in between may miss one, and is then given up like it."""
        some = list(bars.values())[:MOST_BARS]
        for place, bar in enumerate(some):
            for field, number in enumerate(bar):
                self._numbers[_BARS + place * _OF_A_BAR + field] = number
        self._numbers[_COUNT] = len(some)

    def barred(self, owner: int) -> Bar | None:
        """Give the bar in front of an owner's entries, if there is one."""
        numbers = self._numbers
        for place in range(numbers[_COUNT]):
            first = _BARS + place * _OF_A_BAR
            if numbers[first] == owner and monotonic_ns() < numbers[first + 2]:
                return Bar(*numbers[first : first + _OF_A_BAR])
        return None

    def place(self, number: int) -> "Place":
        first = _PLACES + number * _OF_A_PLACE
        return Place(self._numbers[first : first + _OF_A_PLACE])


class Place:
    """What one resolver process is about. It writes all but whether it is given up."""

    __slots__ = ("_numbers",)

    def __init__(self, numbers: "memoryview[int]") -> None:
        self._numbers = numbers

    def take(self, worker: int, message: int) -> None:
        """Take a message of a worker's."""
        self._numbers[1] = worker
        self._numbers[5] = message

    def begin(self, question: int) -> int:
        """Begin with a question of it; give the time."""
        numbers = self._numbers
        numbers[0] = 0
        numbers[2] = question
        numbers[3] = 0
        now = numbers[0] = monotonic_ns()
        return now

    def enter(self, owner: int) -> None:
        """Say whose entry is gone into next."""
        self._numbers[3] = owner + 1

    def done(self) -> None:
        """Say that the message is answered."""
        self._numbers[0] = self._numbers[5] = 0

    @property
    def since(self) -> int:
        """When the last question was begun, 0 where there is none."""
        return self._numbers[0]

    @property
    def question(self) -> tuple[int, int, int]:
        """The worker that asks, its message (0 where that is answered), and the question."""
        return self._numbers[1], self._numbers[5], self._numbers[2]

    @property
    def owner(self) -> int | None:
        """Whose entry is looked into, None where that is not known yet."""
        return self._numbers[3] - 1 if self._numbers[3] else None

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for its answers any more: then it is to leave."""
        return bool(self._numbers[4])

    def give_up(self) -> None:
        """Wait for its answers no more."""
        self._numbers[4] = 1

    def clear(self) -> None:
        """Prepare it for a new process."""
        for field in range(_OF_A_PLACE):
            self._numbers[field] = 0
