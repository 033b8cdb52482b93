"""Signals: which ones the proxy acts on, and how its loop hears of them.

Python writes the number of each signal into a pipe, without needing memory for it. What it calls
besides, between two steps of whatever runs, may fail for want of memory, so that this only keeps
the pipe from getting full: what counts is what was in it.
"""

import os
import signal
from collections.abc import Callable

from sniproxy.dataplane.poller import Poller

SIGNALS = frozenset(
    {
        signal.SIGHUP,
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCHLD,
    }
)
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
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        poller.attend(self._read, self._act)

    def handle(self, number: signal.Signals, act: Callable[[], object]) -> None:
        """Have ``act`` called after a signal, once for those that came at the same time; again
        where it has raised MemoryError."""
        self._acts[int(number)] = act
        signal.signal(number, self._tell)

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
