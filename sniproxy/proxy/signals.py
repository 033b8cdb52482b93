"""Signals: which ones the proxy acts on, and how its loop hears of them.

Not by ``loop.add_signal_handler``: there each signal is a byte in a socket, and when somebody sends
more of them than it holds, Python complains on standard error, past the log, and the byte that is
lost may be the one that was to stop us.
"""

import asyncio
import signal
from collections.abc import Callable

SIGNALS = frozenset({signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD})
"""All that any of our processes acts on."""


def at_signal(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, act: Callable[[], None]
) -> None:
    """Have ``loop`` call ``act`` after a signal, once for those that came at the same time.

    Once the loop is closed the signal must be blocked.
    """

    def tell(_number: int, _frame: object) -> None:
        # Called by Python between two steps of whatever runs; wakes a loop that sleeps.
        loop.call_soon_threadsafe(act)

    signal.signal(number, tell)
