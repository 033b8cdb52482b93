"""Signals: which ones the proxy acts on, and how its loop hears of them.

Not by ``loop.add_signal_handler``: there each signal is a byte in a socket, and when somebody sends
more of them than it holds, Python complains on standard error, past the log, and the byte that is
lost may be the one that was to stop us. Here the bytes only wake the loop, so none is missed.
"""

import asyncio
import os
import signal
from collections.abc import Callable

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

_WAKE_UPS = 4096
"""Bytes read at once."""


class SignalHandlers:
    """The handlers of the process, which run in ``loop``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A signal may come when Python has looked for the last time before it waits; then only
        # what the wait itself sees ends it. A full pipe does as well as one more byte.
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        loop.add_reader(self._read, self._empty)

    def handle(self, number: signal.Signals, act: Callable[[], None]) -> None:
        """Have ``act`` called after a signal, once for those that came at the same time."""

        def tell(_number: int, _frame: object) -> None:
            # Called by Python between two steps of whatever runs.
            self._loop.call_soon_threadsafe(act)

        signal.signal(number, tell)

    def close(self) -> None:
        """Give the pipe back, before the loop is closed. The signals must be blocked or ignored."""
        signal.set_wakeup_fd(-1)
        self._loop.remove_reader(self._read)
        os.close(self._read)
        os.close(self._write)

    def _empty(self) -> None:
        os.read(self._read, _WAKE_UPS)
