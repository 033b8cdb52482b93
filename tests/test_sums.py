"""What several processes have said, as one."""

from sniproxy.dataplane.refusals import MOST_NAMES, Refusals, readable
from sniproxy.process.channel import Fields
from sniproxy.process.sums import added


def test_numbers_are_added_and_words_stand() -> None:
    total: Fields = {"reason": "SIGHUP"}
    total = added(total, {"reason": "SIGHUP", "open": 2})
    total = added(total, {"reason": "SIGHUP", "open": 3, "more": 1})
    assert total == {"reason": "SIGHUP", "open": 5, "more": 1}


def test_names_are_added_and_stay_few() -> None:
    """However many workers there are, each with names that no other has."""
    total: Fields = {}
    for worker in range(20):
        refusals = Refusals()
        for number in range(MOST_NAMES - 1):
            refusals.count("no_such_host", f"{worker}.{number}.example")
            refusals.count("no_socket", f"{worker}.{number}.example")
        for _ in range(2):
            refusals.count("no_such_host", "steady.example")
            refusals.count("nothing_listens", "down.example")
        total = added(total, {**refusals.fields()})
    assert sum(":" in field for field in total) == 2 * MOST_NAMES
    line = readable(total)
    assert line.pop("names") == "down.example:40,steady.example:40,0.0.example:1"
    assert line == {
        "count": 20 * (2 * MOST_NAMES + 2),
        "no_such_host": 20 * (MOST_NAMES + 1),
        "no_socket": 20 * (MOST_NAMES - 1),
        "nothing_listens": 40,
    }
