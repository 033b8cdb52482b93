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
"""No signal has this number."""


class SignalHandlers:
    """The handlers of the process, which run in the loop of ``poller``."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._acts: dict[int, Callable[[], object]] = {}
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # All that is needed to note a signal: nothing is made for it when it comes.
        self._came = [False] * signal.NSIG
        self._number = bytearray(1)
        self._buffers = [self._number]
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
        self._take()
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
                self._take()
            finally:
                os.write(self._write, b"\0")  # the loop is still to be woken

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

    def _take(self) -> None:
        """Note all signals that are in the pipe."""
        self._reading = True
        try:
            while os.readv(self._read, self._buffers):
                self._came[self._number[0]] = True
        except BlockingIOError:
            pass
        finally:
            # One that was read when a handler failed has not been noted yet.
            self._came[self._number[0]] = True
            self._number[0] = _NOTHING
            self._reading = False
