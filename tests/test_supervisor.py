"""What the supervisor makes of several workers' reports (the rest: end_to_end/test_workers.py)."""

import signal

import pytest

from sniproxy.process import supervisor


def test_numbers_are_added_and_words_stand() -> None:
    total: dict[str, int | str] = {"reason": "SIGHUP"}
    total = supervisor._sum(total, {"reason": "SIGHUP", "open": 2})
    total = supervisor._sum(total, {"reason": "SIGHUP", "open": 3, "more": 1})
    assert total == {"reason": "SIGHUP", "open": 5, "more": 1}


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, "status_0"),
        (70, "status_70"),
        (-signal.SIGKILL, "SIGKILL"),
        (-(signal.SIGRTMIN + 3), f"signal_{signal.SIGRTMIN + 3}"),
    ],
)
def test_how_a_worker_died(code: int, how: str) -> None:
    assert supervisor._how(code) == how
