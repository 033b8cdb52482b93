"""Lines that come again are counted, in a table that nobody's lines can fill."""

import tracemalloc

import pytest

from sniproxy.log.log import Log
from sniproxy.log.repeats import MAX_BYTES, MAX_ROWS, MAX_WORDS, MOST_OF_ONE, Repeats
from tests.test_log import Whim


def test_each_line_is_a_first_once_a_period() -> None:
    repeats = Repeats()
    words = "event=a " + "x" * MAX_WORDS
    for _ in range(2):
        # Lines of another priority are others, and those are none that differ far behind.
        said = [(4, words), (4, words + "y"), (3, words), (4, words), (4, "event=b")]
        firsts = [repeats.first(priority, "a", line) for priority, line in said]
        assert firsts == [True, False, True, False, True]
        assert list(repeats.take()) == [(4, words[:MAX_WORDS], 2)]


@pytest.mark.parametrize("size", [1, 250, 9000])
def test_the_table_of_repeats_is_bounded(size: int) -> None:
    """Hosts beyond it share a row, and none of their lines is lost in the sums."""
    sink = Whim([])
    log = Log(sink)
    rounds, hosts = 3, 5000
    tracemalloc.start()
    for _ in range(rounds):
        for number in range(hosts):
            log.warning("backend_fault", host=f"{number:04}" + "x" * size)
            log.error("no_worker")
    held = sum(
        one.size
        for one in tracemalloc.take_snapshot()
        .filter_traces([tracemalloc.Filter(True, "*/sniproxy/log/*.py")])
        .statistics("filename")
    )
    tracemalloc.stop()
    at_once = sink.data.decode().splitlines()
    assert len(at_once) <= MAX_ROWS + 2
    assert held < MAX_BYTES + MAX_ROWS * 400
    log.report_repeats()
    counts = sink.data.decode().splitlines()[len(at_once) :]
    assert len(counts) <= MAX_ROWS + 2
    assert sum("others=yes" in line for line in counts) == 1
    again = sum(int(line.rpartition("count=")[2]) for line in counts)
    assert len(at_once) + again == 2 * rounds * hosts


def test_nobody_takes_all_the_room_for_warnings() -> None:
    """The others' are still written at once, and nothing is lost in the sums."""
    sink = Whim([])
    log = Log(sink)
    for period in range(2):
        for number in range(5000):
            log.warning("backend_fault", account=4321, host=f"{number}.evil.example")
        for number in range(100):
            log.warning("backend_fault", account=5000 + number, host=f"{number}.honest.example")
        lines = sink.data.decode()
        sink.data = b""
        assert lines.count(".honest.example") == 100, period
        # And one for all others together.
        assert lines.count(".evil.example") == MOST_OF_ONE + 1
        log.report_repeats()
        assert sink.data.decode().endswith(f" others=yes count={5000 - MOST_OF_ONE - 1}\n")
        sink.data = b""
