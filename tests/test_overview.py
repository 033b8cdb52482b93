"""What several processes have counted is added up, and what took no time is counted too."""

import gc
from collections.abc import Generator
from operator import le

from sniproxy.dataplane.counts import (
    ACCEPTED,
    BOUNDS,
    CONNECTIONS,
    FAULTS,
    HAS_OPEN,
    UP,
    Counts,
    Times,
)
from sniproxy.status import overview as module
from sniproxy.status.overview import Answered, Overview, Refresh, Step, histogram, overview
from tests.seen import Shown


def seen(proxy: Shown) -> Overview:
    """Give what is made when all have looked."""
    steps = overview(proxy)
    assert next(steps) == Refresh()
    return finished(steps)


def finished(steps: Generator[Step, Answered | None, Overview]) -> Overview:
    while True:
        try:
            assert steps.send(None) == b""
        except StopIteration as stop:
            made: Overview = stop.value
            return made


def test_processes_are_added_up() -> None:
    made = seen(Shown())
    assert made.numbers[ACCEPTED] == 30
    assert made.reasons == {"no_such_host": 6}
    assert sorted(made.hosts) == ["0.example", "1.example", "2.example", "a.example"]
    assert (made.hosts["a.example"][CONNECTIONS], made.hosts["a.example"][UP]) == (12, 300)
    assert made.hosts["1.example"] == (0, 0, 0, 1, 0)
    assert made.sums == [12, 300, 0, 3, 0]
    assert (made.restarts, made.lines_lost) == (1, 5)


def test_nothing_is_nothing() -> None:
    """Not even a row of those that have none of their own."""
    proxy = Shown()
    proxy.parts = [Counts()]
    proxy.processes = list  # type: ignore[method-assign]
    made = seen(proxy)
    assert (made.hosts, made.reasons, made.sums) == ({}, {}, [0] * 5)
    assert made.hello.observed == made.backend.observed == 0


def test_what_is_counted_after_the_look_is_of_the_next_one() -> None:
    proxy = Shown()
    steps = overview(proxy)
    next(steps)
    proxy.parts[0].numbers[ACCEPTED] += 5
    next(steps)
    proxy.parts[0].numbers[ACCEPTED] += 100
    assert finished(steps).numbers[ACCEPTED] == 35


def test_others_have_their_turn_in_between() -> None:
    proxy = Shown()
    for number in range(5 * module.HOSTS_A_PIECE):
        row = proxy.parts[0].host(f"{number}.many.example", "")
        row[FAULTS], row[HAS_OPEN] = 1, number
    steps = overview(proxy)
    assert len(list(steps)) >= 1 + 5 + 2


def test_a_histogram_has_those_that_took_no_time() -> None:
    times = [Times(), Times()]
    times[0].took(0.2)
    times[1].took(BOUNDS[-1] + 1)
    times[0].settle(7)
    times[1].settle(3)
    made = histogram(times)
    assert made.buckets[0] == 8
    assert made.buckets[BOUNDS.index(0.1)] == 8
    assert made.buckets[BOUNDS.index(0.25)] == made.buckets[-1] == 9
    assert (made.observed, made.total) == (10, 11.2)


def test_no_bucket_falls_while_it_is_read() -> None:
    """What is slow and comes in the middle is in the times, and not yet among what was read of the
    hosts; it does not have another called slow that was not."""
    proxy = Shown()
    first = seen(proxy)
    steps = overview(proxy)
    next(steps)
    for _ in proxy.parts:
        next(steps)
    row = proxy.parts[0].host("a.example", "a.example")
    row[CONNECTIONS] += 1
    proxy.parts[0].arrived(0.0, 0.2, 3.0)
    for made in (finished(steps), seen(proxy)):
        for name in ("hello", "backend"):
            before, after = getattr(first, name), getattr(made, name)
            assert all(map(le, before.buckets, after.buckets))
            assert after.observed == before.observed + 1


def test_the_garbage_collector_does_not_come_to_look_at_hosts() -> None:
    made = seen(Shown())
    gc.collect()
    assert not any(map(gc.is_tracked, made.hosts.values()))
