"""A worker process, as the supervisor sees it."""

import signal

import pytest

from sniproxy.process.channel import Channel
from sniproxy.process.worker import Worker
from tests.test_channel import fill, taken


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (None, "unknown"),
        (0, "status_0"),
        (70, "status_70"),
        (-signal.SIGKILL, "SIGKILL"),
        (-(signal.SIGRTMIN + 3), f"signal_{signal.SIGRTMIN + 3}"),
    ],
)
def test_how_it_ended(code: int | None, how: str) -> None:
    ours, theirs = Channel.pair()
    worker = Worker(1, ours)
    worker.code = code
    assert worker.how_it_ended() == how
    ours.close()
    theirs.close()


def test_one_that_hangs_hears_the_last_order_behind_all_others() -> None:
    ours, theirs = Channel.pair()
    worker = Worker(1, ours)
    sent = fill(ours)
    worker.tell("look")
    worker.tell("stop", last=True, reason="SIGTERM")
    for _ in range(sent):
        assert taken(theirs) is not None
    assert theirs.receive() is None
    ours.close()
    theirs.close()
