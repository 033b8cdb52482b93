"""Signals: which ones the proxy acts on, and how its loop hears of them.

Python writes the number of each signal into a pipe, without needing memory for it. What it calls
besides, between two steps of whatever runs, may fail for want of memory, so that this only keeps
the pipe from getting full: what counts is what was in it.
"""

import functools
import os
import signal
from collections.abc import Callable

from sniproxy.dataplane.poller import Poller
from sniproxy.process.renewal import Owner

STOPS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
SIGNALS = frozenset({*STOPS, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD})
"""All that any of our processes acts on."""

_NOTHING = 0
_AWAKE = 255
"""No signal has these numbers: the second only wakes the loop."""
_AT_ONCE = 255
"""Signals taken from the pipe at a time: who sends them faster than they are taken stops nothing.
(Python makes no new object for a number up to 256.)"""


class SignalHandlers:
    """The handlers of the process, which run in the loop of ``poller``."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._acts: dict[int, Callable[[], object]] = {}
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # All that is needed to note a signal: nothing is made for it when it comes.
        self._came = [False] * (_AWAKE + 1)
        self._numbers = bytearray(_AT_ONCE + 1)
        self._buffers = [memoryview(self._numbers)[:_AT_ONCE]]
        self._reading = False
        self._left = _NOTHING
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        poller.attend(self._read, self._act)

    def handle(self, number: signal.Signals, act: Callable[[], object]) -> None:
        """Have ``act`` called after a signal, once for those that came at the same time; again
        where it has raised MemoryError."""
        self._acts[int(number)] = act
        signal.signal(number, self._tell)

    def handle_stops(self, owner: Owner, *, in_place: bool) -> None:
        """Have SIGHUP and SIGTERM stop who has the connections, SIGINT and every further one stop
        it now. A first one that comes when it has handed them over ``in_place`` is for the program
        that is run next in this process: that adopts them, and then stops."""

        def act(number: signal.Signals) -> None:
            if in_place and owner.handed_over and not self._left:
                self._left = number
            elif not owner.stop(number.name):
                owner.stop_now(number.name)

        for number in (signal.SIGHUP, signal.SIGTERM):
            self.handle(number, functools.partial(act, number))
        self.handle(signal.SIGINT, lambda: owner.stop_now(signal.SIGINT.name))

    def end(self) -> None:
        """Close it for the end, with signals blocked: they wait for the program that is run next in
        this process, if one is, and so do stops that nobody has acted on."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while self._take():
            pass
        for number in STOPS:
            if self._came[number] or self._left == number:
                os.kill(os.getpid(), number)
        self.close()

    def close(self) -> None:
        """Give the pipe back, before the loop is closed. The signals must be blocked or ignored."""
        signal.set_wakeup_fd(-1)
        self._poller.forget(self._read)
        os.close(self._read)
        os.close(self._write)

    def _tell(self, _number: int, _frame: object) -> None:
        """Called by Python: make room in the pipe for those that come before the loop's turn."""
        if not self._reading:
            try:
                while self._take() == _AT_ONCE:
                    pass
            finally:
                os.write(self._write, b"\xff")  # the loop is still to be woken

    def _act(self) -> None:
        self._take()
        for number, act in self._acts.items():
            if self._came[number]:
                # Before: what comes while it acts is to be acted on once more.
                self._came[number] = False
                try:
                    act()
                except BaseException:
                    self._came[number] = True
                    raise

    def _take(self) -> int:
        """Note the signals that are in the pipe, or the first of them; give their number."""
        self._reading = True
        try:
            return os.readv(self._read, self._buffers)
        except BlockingIOError:
            return 0
        finally:
            # Also those that were read when a handler failed.
            place = 0
            while self._numbers[place]:
                self._came[self._numbers[place]] = True
                self._numbers[place] = _NOTHING
                place += 1
            self._reading = False
