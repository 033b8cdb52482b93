"""What the supervisor makes of several workers' reports (the rest: end_to_end/test_workers.py)."""

import errno
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import cast

import pytest

from sniproxy.dataplane.counts import Counts
from sniproxy.log.log import Log
from sniproxy.log.sinks import FileSink
from sniproxy.process import renewal, supervisor
from sniproxy.process.channel import Channel
from sniproxy.process.notify import Store
from sniproxy.process.parcel import Parcel
from sniproxy.process.questions import Question
from sniproxy.process.server import PACKING
from sniproxy.process.signals import SIGNALS
from sniproxy.process.worker import Worker
from sniproxy.status.overview import About


class Renewal:
    """Nothing is renewed here."""

    under_way = False
    store = Store({})

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, *_words: object) -> None:
        self.asked += 1


@pytest.fixture
def first(tmp_path: pathlib.Path) -> Iterator[supervisor.Supervisor]:
    """A supervisor in the test's own process, that is not run."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with (tmp_path / "log").open("wb", buffering=0) as log:
        made = supervisor.Supervisor(
            2,
            Log(FileSink(log.fileno())),
            lambda adopted, known: None,
            lambda: None,
            cast("renewal.Renewal", Renewal()),
            [Counts() for _ in range(4)],
            About("1.2.3", "plain", ["127.0.0.1:443"], isolate=False, started=0.0),
        )
        yield made
    made._handlers.close()
    made._poller.close()
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def receive_parcel(first: supervisor.Supervisor, one: socket.socket, *, there: bool = True) -> None:
    """Send a parcel as a worker does, with its descriptor or as if that had not fitted."""
    ours, theirs = Channel.pair()
    if there:
        theirs.send_descriptor(supervisor.PARCEL, one.fileno(), count=7)
    else:
        theirs.send(supervisor.PARCEL, count=7)
    one.close()
    assert first._receive(Worker(0, ours))
    theirs.close()
    ours.close()


def test_a_parcel_goes_where_it_is_kept(
    first: supervisor.Supervisor, tmp_path: pathlib.Path
) -> None:
    kept: list[tuple[int, bool]] = []

    def keep(parcel: Parcel) -> None:
        kept.append((parcel.count, parcel.socket.fileno() >= 0))

    first._keep = keep
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receive_parcel(first, one)
    assert kept == [(7, True)]
    # Our copy is closed whatever becomes of it.
    assert other.recv(1) == b""
    other.close()
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("why", ["nobody", "no_descriptor", "refused"])
def test_a_parcel_that_can_not_be_kept_is_told_of(
    first: supervisor.Supervisor, tmp_path: pathlib.Path, why: str
) -> None:
    def refuse(_parcel: Parcel) -> None:
        raise OSError(errno.ENOSPC, "no room")

    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if why != "nobody":
        first._keep = refuse
    receive_parcel(first, one, there=why != "no_descriptor")
    assert other.recv(1) == b""
    other.close()
    assert (tmp_path / "log").read_text().count("event=connections_lost count=7") == 1


def test_who_says_a_word_does_not_hang(first: supervisor.Supervisor) -> None:
    """Also where nobody has come to hear it yet; who says none in time is killed."""
    ours, theirs = Channel.pair()
    with subprocess.Popen(["sleep", "600"]) as process:
        worker = Worker(0, ours)
        worker.pid = process.pid
        first._workers[0] = worker
        worker.patience = time.monotonic() - 1
        theirs.send(PACKING)
        first._kill_who_hangs()
        assert worker.patience > time.monotonic()
        assert process.poll() is None
        worker.patience = time.monotonic() - 1
        first._kill_who_hangs()
        assert process.wait() == -signal.SIGKILL
    theirs.close()
    ours.close()


def test_what_nobody_has_said_is_not_known(first: supervisor.Supervisor) -> None:
    said: list[tuple[int, bool]] = []
    first._ready = lambda adopted, known: said.append((adopted, known))
    for laggard in (False, True):
        first._parcels = True
        question = Question({0, 1} if laggard else set(), {"adopted": 7})
        question.expire()
        first._conclude(supervisor.READY, question)
        question = Question(set(), {"adopted": 7})
        question.expire()
        first._conclude(supervisor.ADOPT, question)
    assert said == [(7, True), (7, False)]


def test_no_stop_before_parcels_are_in_somebodys_hands(first: supervisor.Supervisor) -> None:
    """A worker that has nothing to finish yet leaves at once, and can't take what others leave."""
    ours, theirs = Channel.pair()
    first._to_fork.clear()
    first._workers[0] = Worker(0, ours)
    first._parcels = True
    assert first.stop("SIGTERM")
    assert not first.stop("SIGHUP")
    assert not first._turned()
    with pytest.raises(BlockingIOError):
        theirs.receive()
    first._questions[supervisor.READY].awaited.clear()
    for _ in range(2):
        assert not first._turned()
    told = []
    for _ in range(2):
        message = theirs.receive()
        assert message is not None
        told.append(message[0])
        theirs.done()
    assert told == [supervisor.ADOPT, supervisor.STOP]
    theirs.close()
    ours.close()


def test_a_stop_where_nobody_can_take_parcels_is_the_end(first: supervisor.Supervisor) -> None:
    first._to_fork.clear()
    first._parcels = True
    first.stop("SIGTERM")
    assert first._turned()
    # What ``run`` writes then.
    assert set(supervisor._LAST_WORDS) <= set(first._questions)


def test_no_renewal_before_all_serve(first: supervisor.Supervisor) -> None:
    """Else workers that could not be started at first never would be."""
    renewed = cast("Renewal", first._renewal)
    first._renew()
    first._renew()
    assert renewed.asked == 0
    first._conclude(supervisor.READY, first._questions[supervisor.READY])
    assert renewed.asked == 1
    first._renew()
    assert renewed.asked == 2


def test_once_a_minute_the_most_refused_names_of_all_workers(
    first: supervisor.Supervisor, tmp_path: pathlib.Path
) -> None:
    ours, theirs = Channel.pair()
    for count in (2, 5):
        theirs.send("refused", **{"count": count, "no_such_host": count, "name:a.example": count})
        assert first._receive(Worker(0, ours))
    for _ in range(2):
        assert not first._report_refusals()
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith(" event=refused count=7 no_such_host=7 names=a.example:7")
    theirs.close()
    ours.close()
