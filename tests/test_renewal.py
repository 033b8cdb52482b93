"""When the next process is asked for: how much goes at once, and what keeps it from going."""

import os
import pathlib
import resource
import socket
import sys
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.dataplane.poller import Poller
from sniproxy.log.log import Log
from sniproxy.log.sinks import FileSink
from sniproxy.process import renewal
from sniproxy.process.parcel import Parcel
from sniproxy.process.renewal import Renewal, _needs, _shares

COMMAND = [sys.executable, "-P", "-m", "sniproxy"]


class Owner:
    """Has so many connections each time that it is asked; the last for good."""

    def __init__(self, *counts: Sequence[int]) -> None:
        self.left = list(counts)
        self.shares: Sequence[int] | None = None
        self.stopped = ""

    def count(self, then: Callable[[list[int]], object]) -> None:
        then(list(self.left.pop(0) if len(self.left) > 1 else self.left[0]))

    def hand_over(self, keep: Callable[[Parcel], None], shares: Sequence[int]) -> None:
        self.shares = shares

    def stop(self, reason: str) -> None:
        self.stopped = reason


class Attempt:
    """One renewal, from being asked for to its end, and the log of it."""

    def __init__(
        self, folder: pathlib.Path, one: Renewal, owner: Owner, asked: int = 1, faults: int = 0
    ) -> None:
        self.owner = owner
        path = folder / "log"
        with path.open("wb", buffering=0) as file:
            told: list[Exception] = []
            poller = Poller(told.append)
            for _ in range(asked):
                one.ask(poller, owner, Log(FileSink(file.fileno())))
            # What was not begun can be asked for once more; what was is the end of this process.
            poller.run(lambda: not one.under_way or owner.shares is not None or owner.stopped != "")
            assert one.under_way == (owner.shares is not None or owner.stopped != "")
            assert poller.watchers() == []
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            one.close()
            poller.close()
            assert len(told) == faults
        self.log = path.read_text()


def test_a_program_that_reads_our_format(tmp_path: pathlib.Path) -> None:
    one = Attempt(tmp_path, Renewal({}, COMMAND), Owner([3]), asked=5)
    assert one.log == ""
    assert one.owner.shares is not None
    assert one.owner.shares[0] >= _needs(3)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (None, "it is not known which file to run"),
        (["/no/such/file"], "No such file"),
        (["/bin/true"], "/bin/true: it can't go on with our connections: b''"),
        (["/bin/echo", "words"], "can't go on"),
        (["/dev/null"], "not safe to run: /dev/null may be written to"),
        (["/"], "Permission denied"),
    ],
)
def test_a_program_that_does_not(
    tmp_path: pathlib.Path, command: list[str] | None, problem: str
) -> None:
    one = Attempt(tmp_path, Renewal({}, command), Owner([3]))
    assert one.owner.shares is None
    assert not one.owner.stopped
    assert one.log.count("event=not_renewed") == 1
    assert problem in one.log


def test_who_asks_again_is_told_again(tmp_path: pathlib.Path) -> None:
    """Not counted, as faults are that nobody has asked for."""
    path = tmp_path / "log"
    poller, one = Poller(lambda error: None), Renewal({}, None)
    with path.open("wb", buffering=0) as file:
        log = Log(FileSink(file.fileno()))
        for _ in range(3):
            one.ask(poller, Owner([3]), log)
    assert path.read_text().count("event=not_renewed") == 3
    poller.close()


def test_a_program_that_hangs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "TRIAL", 0.05)
    one = Attempt(tmp_path, Renewal({}, ["/bin/sh", "-c", "exec sleep 600"]), Owner([3]))
    assert "/bin/sh: it did not say in 0.05 seconds which connections" in one.log
    assert one.owner.shares is None


class Poor(Owner):
    """Has no memory at first when it is asked."""

    tries = 0

    def count(self, then: Callable[[list[int]], object]) -> None:
        self.tries += 1
        if self.tries < 3:
            raise MemoryError
        super().count(then)


def test_memory_that_fails_when_the_program_has_answered(tmp_path: pathlib.Path) -> None:
    one = Attempt(tmp_path, Renewal({}, COMMAND), Poor([3]), faults=2)
    assert one.owner.shares is not None


def test_memory_that_fails_when_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    """Who asked asks again, as for any signal that could not be acted on."""
    one, owner = Renewal({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, None), Poor([3])
    poller = Poller(lambda error: None)
    for _ in range(2):
        with pytest.raises(MemoryError):
            one.ask(poller, owner, Log(FileSink(2)))
        assert not one.under_way
    one.ask(poller, owner, Log(FileSink(2)))
    assert one.under_way
    poller.run(lambda: owner.stopped != "")
    poller.close()


def test_left_off_in_the_middle() -> None:
    """The program on trial goes with it."""
    faults: list[Exception] = []
    poller, owner = Poller(faults.append), Owner([3])
    one = Renewal({}, ["/bin/sh", "-c", "exec sleep 600"])
    before = len(os.listdir("/proc/self/fd"))
    one.ask(poller, owner, Log(FileSink(2)))
    assert one.under_way
    one.close()
    one.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert len(os.listdir("/proc/self/fd")) == before
    assert poller.watchers() == []
    assert owner.shares is None
    poller.close()
    assert not faults


def test_too_many_wait_until_there_are_fewer(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "_AGAIN", 0)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    owner = Owner([limit, limit], [limit, 1], [10, 10])
    one = Attempt(tmp_path, Renewal({}, COMMAND), owner)
    assert len(owner.left) == 1
    assert one.owner.shares is not None
    assert sum(one.owner.shares) <= limit


def test_too_many_do_not_wait_without_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "_AGAIN", 0)
    monkeypatch.setattr(renewal, "ROOM", 0.01)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    one = Attempt(tmp_path, Renewal({}, COMMAND), Owner([limit, 2 * limit]))
    assert one.owner.shares is not None
    assert sum(one.owner.shares) <= limit
    assert one.owner.shares[0] < one.owner.shares[1]


@pytest.mark.parametrize("answers", [True, False])
def test_a_manager_without_a_store(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr("sniproxy.process.notify.BARRIER", 20 if answers else 0.05)
    address = str(tmp_path / "notify")

    def manage() -> None:
        while answers:
            text, numbers, _, _ = socket.recv_fds(manager, 4096, 253)
            for number in numbers:
                socket.close(number)
            if b"FDSTOREREMOVE" in text:
                return

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        thread = threading.Thread(target=manage)
        thread.start()
        # No program is tried: the manager starts the next process.
        one = Attempt(tmp_path, Renewal({"NOTIFY_SOCKET": address}, None), Owner([3, 4000]))
        thread.join()
    assert one.owner.stopped == "SIGUSR2"
    assert one.owner.shares is None
    assert one.log.count("event=not_handed_over") == 1
    assert "does not keep 4 descriptors" in one.log


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=20), st.integers(0, 1_000_000))
def test_shares(counts: list[int], limit: int) -> None:
    shares = _shares(counts, limit)
    assert len(shares) == len(counts)
    assert all(share >= 0 for share in shares)
    assert sum(shares) <= limit
    needs = [_needs(count) for count in counts]
    if sum(needs) <= limit:
        assert all(share >= need for share, need in zip(shares, needs, strict=True))


def test_without_processes_there_are_no_shares() -> None:
    assert _shares([], 100) == []


def test_parcels_are_copied(tmp_path: pathlib.Path) -> None:
    one = Renewal({}, None)
    with socket.socket() as held:
        one.keep(Parcel(held, 3))
    (parcel,) = one.parcels
    assert (parcel.count, parcel.socket.fileno() >= 0) == (3, True)
    parcel.socket.close()
