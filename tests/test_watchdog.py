"""The watchdog over a loop in the test's own thread, which sleeps in one way or another."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sniproxy.dataplane import watchdog
from sniproxy.dataplane.poller import Poller, Watcher
from sniproxy.dataplane.watchdog import Step, Watchdog
from sniproxy.resolver.hosts import Hosts


class Sleeper:
    """A watcher that does something once when its pipe can be read."""

    def __init__(self, poller: Poller, act: Callable[[], object]) -> None:
        self._act = act
        self.done = False
        self._read, write = os.pipe2(os.O_NONBLOCK)
        os.close(write)
        poller.watch(self._read, self)

    def ready(self, mask: int) -> None:
        if not self.done:
            self._act()
            self.done = True

    def resume(self) -> None: ...

    def abandon(self) -> None: ...

    def stop(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self._read)


class Held(Hosts):
    """A hosts directory in which a look-up does something else."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.close()
        self._act = act

    def has(self, directory: str, name: str) -> bool:
        self._act()
        return True


class Watched:
    """A loop and what its watchdog has told."""

    def __init__(self) -> None:
        self.faults: list[Exception] = []
        self.slept: list[Watcher] = []
        self.hung: list[Step] = []
        self.poller = Poller(self.faults.append)
        self.watchdog = Watchdog(self.poller, self.slept.append, self.hung.append)
        self.sleepers: list[Sleeper] = []

    def sleeper(self, act: Callable[[], object]) -> Sleeper:
        """Have something done while somebody waits: the watchdog rests as long as nobody does."""

        def while_somebody_waits() -> None:
            self.sleepers.append(Sleeper(self.poller, lambda: None))
            act()

        self.sleepers.append(Sleeper(self.poller, while_somebody_waits))
        return self.sleepers[-1]

    def run(self) -> None:
        """Have the loop go on until all have slept, and what is told of it has come."""
        self.watchdog.start()
        while not all(sleeper.done for sleeper in self.sleepers):
            self.poller.select(1)
        self.poller.select(2 * watchdog.LOOK)

    def close(self) -> None:
        self.watchdog.close()
        for sleeper in self.sleepers:
            sleeper.close()
        self.poller.close()
        assert not self.faults


@pytest.fixture
def watched() -> Iterator[Watched]:
    before = signal.getsignal(watchdog.SIGNAL)
    made = Watched()
    yield made
    made.close()
    signal.signal(watchdog.SIGNAL, before)


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_who_sleeps_is_woken_and_named(watched: Watched) -> None:
    """Each of several in a turn; pause(2) lasts until a signal has come."""
    sleepers = [watched.sleeper(signal.pause) for _ in range(3)]
    watched.run()
    assert set(watched.slept) == set(sleepers)
    assert not watched.hung


def test_who_works_is_not_asleep(watched: Watched) -> None:
    watched.sleeper(functools.partial(work, 6 * watchdog.LOOK))
    watched.run()
    assert not watched.slept
    assert not watched.hung


def test_who_has_no_cpu_is_not_asleep(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the watchdog has none, either: its looks come late."""
    monkeypatch.setattr(watchdog, "LATE", 0)
    loop = threading.get_ident()
    timer = threading.Timer(6 * watchdog.LOOK, lambda: signal.pthread_kill(loop, watchdog.SIGNAL))
    timer.start()
    watched.sleeper(signal.pause)
    watched.run()
    timer.join()
    assert not watched.slept
    assert not watched.hung


def test_what_no_signal_ends_is_told(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the host that is looked up. (Python goes on sleeping after a signal.)"""
    monkeypatch.setattr(watchdog, "HANGS", 0.1)
    look_up = Held(functools.partial(time.sleep, 8 * watchdog.LOOK)).awaits_validation
    watched.sleeper(functools.partial(look_up, "held.example"))
    watched.run()
    assert [(step.host, step.where) for step in watched.hung] == [("held.example", "Held.has")]
    assert not watched.slept


def test_nobody_is_ended_for_a_look_up_that_goes_on(watched: Watched) -> None:
    """No signal ends one: it had no CPU for as long, or whoever held the directory has let go."""
    watched.sleeper(functools.partial(Held(signal.pause).has, "a.example", "send-proxy-v2"))
    watched.run()
    assert not watched.slept
    assert not watched.hung


def test_it_looks_only_while_the_loop_is_at_work(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    real = Watchdog._step
    monkeypatch.setattr(Watchdog, "_step", lambda self: looks.append(1) or real(self))
    watched.sleeper(lambda: None)
    watched.run()
    # It has seen the end of the work; from then on the loop rests, and so does it.
    watched.poller.select(4 * watchdog.LOOK)
    seen = len(looks)
    watched.poller.select(5 * watchdog.LOOK)
    assert len(looks) == seen
