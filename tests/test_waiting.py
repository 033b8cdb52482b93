"""Waiting in line for a queue with room, by a clock of the test's own."""

from sniproxy.dataplane.waiting import (
    FEW_LINES,
    FIRST_RETRY,
    FOR_A_DESCRIPTOR,
    LONGEST_RETRY,
    MAX_KEPT,
    MOST_SELDOM,
    TRIES_A_TURN,
    Lines,
)
from tests.clock import Clock


class Waiter:
    """Gets in where the queue has a place to take; counts its tries."""

    def __init__(self, queue: list[int], accepted_at: float, owner: int = 1000) -> None:
        self._owner = owner
        self.queue = queue
        self.accepted_at = accepted_at
        self.kept = 0
        self.crowded_out: list[str] = []
        self.tries = 0
        self.line = "a.example"
        self.inside = False

    def owner(self) -> int:
        return self._owner

    def crowd_out(self, name: str) -> None:
        self.crowded_out.append(name)

    def attempt(self) -> str | None:
        self.tries += 1
        if not self.queue:
            return self.line
        self.queue.pop()
        self.inside = True
        return None


def line(clock: Clock, queue: list[int], count: int) -> tuple[Lines, list[Waiter]]:
    lines = Lines(clock.later)
    waiters = [Waiter(queue, index) for index in range(count)]
    for waiter in waiters:
        lines.join("a.example", waiter)
    return lines, waiters


def test_only_the_first_tries() -> None:
    clock = Clock()
    lines, waiters = line(clock, [], 1000)
    clock.advance(1)
    # After 1, 2, 4, 8, 16, 32 and then every 50 milliseconds, for all of them together.
    assert waiters[0].tries == 6 + 18
    assert sum(waiter.tries for waiter in waiters) == waiters[0].tries
    assert clock.timers == 1
    assert "a.example" in lines


def test_who_gets_in_makes_way_for_the_next() -> None:
    clock = Clock()
    queue: list[int] = []
    lines, waiters = line(clock, queue, 5)
    clock.advance(1)
    queue += [1, 1, 1]
    clock.next_one()
    assert [waiter.inside for waiter in waiters] == [True, True, True, False, False]
    # There was room a moment ago: the pauses begin with a millisecond again.
    queue += [1, 1]
    clock.advance(FIRST_RETRY)
    assert all(waiter.inside for waiter in waiters)
    clock.advance(LONGEST_RETRY)
    assert not lines
    assert clock.timers == 0


def test_others_have_their_turn() -> None:
    clock = Clock()
    queue = [1] * 100
    lines, waiters = line(clock, queue, 40)
    turns = []
    while clock.timers:
        clock.next_one()
        turns.append(sum(waiter.inside for waiter in waiters))
    assert turns == [TRIES_A_TURN, 2 * TRIES_A_TURN, 40]
    assert not lines


def test_who_was_accepted_first_is_first() -> None:
    """Though its hello was complete only later: its time is also up first."""
    clock = Clock()
    queue: list[int] = []
    lines, waiters = line(clock, queue, 3)
    early = Waiter(queue, 0.5)
    lines.join("a.example", early)
    queue += [1, 1]
    clock.advance(LONGEST_RETRY)
    assert waiters[0].inside
    assert early.inside
    assert not waiters[1].inside


def test_who_leaves_is_not_tried() -> None:
    clock = Clock()
    queue: list[int] = []
    lines, waiters = line(clock, queue, 4)
    twin = Waiter(queue, 1)
    lines.join("a.example", twin)
    for waiter in (waiters[0], twin, waiters[2]):
        lines.leave("a.example", waiter)
        lines.leave("a.example", waiter)
    lines.leave("b.example", waiters[1])
    queue += [1] * 9
    clock.advance(1)
    assert [waiter.tries for waiter in (*waiters, twin)] == [0, 1, 0, 1, 0]
    assert not lines


def test_hosts_do_not_wait_for_each_other() -> None:
    clock = Clock()
    lines, waiters = line(clock, [], 2)
    other = Waiter([1], 5)
    lines.join("b.example", other)
    clock.advance(LONGEST_RETRY)
    assert other.inside
    assert list(lines) == ["a.example"]
    assert not any(waiter.inside for waiter in waiters)


def test_who_waits_for_something_else_changes_lines() -> None:
    clock = Clock()
    queue: list[int] = []
    lines, waiters = line(clock, queue, 3)
    waiters[0].line = waiters[1].line = FOR_A_DESCRIPTOR
    clock.advance(FIRST_RETRY)
    assert set(lines) == {"a.example", FOR_A_DESCRIPTOR}
    assert [waiter.tries for waiter in waiters] == [1, 1, 1]
    clock.advance(LONGEST_RETRY)
    # Each line goes on with its first.
    assert waiters[0].tries > 1
    assert waiters[1].tries == 1
    assert waiters[2].tries > 1
    queue += [1, 1, 1]
    clock.advance(2 * LONGEST_RETRY)
    assert all(waiter.inside for waiter in waiters)
    clock.advance(LONGEST_RETRY)
    assert not lines
    assert clock.timers == 0


def test_the_lines_of_one_owner_are_tried_together() -> None:
    """As often as a few of them would be, and each still within the time that its clients have."""
    clock = Clock()
    lines = Lines(clock.later)
    many = [Waiter([], 0) for _ in range(1600)]
    other = Waiter([], 0, owner=1001)
    for number, waiter in enumerate(many):
        waiter.line = f"host-{number}.example"
        lines.join(waiter.line, waiter)
    other.line = "other.example"
    lines.join(other.line, other)
    clock.advance(10)
    begun = sum(waiter.tries for waiter in many)
    alone = other.tries
    clock.advance(10)
    assert other.tries - alone == 10 / LONGEST_RETRY
    assert all(waiter.tries >= 10 / MOST_SELDOM for waiter in many)
    assert sum(waiter.tries for waiter in many) - begun <= len(many) * 10 / MOST_SELDOM
    # When most have got in, the others are tried as often as before.
    for waiter in many[FEW_LINES:]:
        waiter.queue = [1]
    clock.advance(2 * MOST_SELDOM)
    few = many[0].tries
    clock.advance(10)
    assert many[0].tries - few == 10 / LONGEST_RETRY
    assert len(lines) == FEW_LINES + 1


def test_what_is_kept_for_one_owner_is_bounded() -> None:
    """Whichever of its hosts they wait for; who leaves makes room."""
    clock = Clock()
    lines = Lines(clock.later)
    waiters = [Waiter([], number, owner=1000 + number // 4) for number in range(5)]
    for number, waiter in enumerate(waiters):
        waiter.kept = MAX_KEPT // 2
        waiter.line = f"{number % 2}.{number // 4}.example"
        lines.join(waiter.line, waiter)
    assert [waiter.crowded_out for waiter in waiters] == [
        [],
        [],
        ["0.0.example"],
        ["1.0.example"],
        [],
    ]
    lines.leave("0.0.example", waiters[0])
    lines.leave("0.0.example", waiters[0])
    for waiter in waiters[2:4]:
        lines.join(waiter.line, waiter)
    assert waiters[2].crowded_out == ["0.0.example"]
    assert waiters[3].crowded_out == ["1.0.example"] * 2
    # Who goes to another line of the same owner takes what it keeps along.
    waiters[1].line = "another.0.example"
    clock.advance(1)
    assert not waiters[1].crowded_out
    assert "another.0.example" in lines
