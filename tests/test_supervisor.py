"""What the supervisor makes of several workers' reports (the rest: end_to_end/test_workers.py)."""

from sniproxy.proxy import supervisor


def test_numbers_are_added_and_words_stand() -> None:
    total: dict[str, int | str] = {"reason": "SIGHUP"}
    supervisor._add(total, {"reason": "SIGHUP", "open": 2})
    supervisor._add(total, {"reason": "SIGHUP", "open": 3, "more": 1})
    assert total == {"reason": "SIGHUP", "open": 5, "more": 1}
