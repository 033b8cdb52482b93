"""The watchdog: a thread that sees when the loop of its process does not come round.

The loop waits for events and for nothing else. Two things can have it sleep all the same: a read
that closes what a peer has passed along (SCM_RIGHTS), a TCP socket with unsent bytes and SO_LINGER,
from which a signal wakes it; and a look-up in a directory or file system that somebody holds, from
which nothing does. (The first is refused by Linux 6.16 and later, ``hosts.SO_PASSRIGHTS``.)

The thread rests while nobody waits: until the loop's epoll has events that the loop does not take
at once. Then it looks at the loop from outside, so that there is nothing for that to do. What it is
at, its frames say; and that it sleeps there, that they stay the same.
"""

import _thread
import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from sniproxy.dataplane.poller import Poller, Watcher
from sniproxy.dataplane.timers import NO_MEMORY
from sniproxy.resolver.hosts import Hosts

LOOK = 0.1
"""Seconds from one look to the next while the loop is at work."""

LATE = 2 * LOOK
"""Seconds after which a look has come late: who had no CPU, or was stopped, has not slept."""

LITTLE = 0.05
"""Share of a CPU that who sleeps uses less of, and who works gets on a very busy machine, too."""

LOOKS = 3
"""Looks in a row that find the loop in the same step, until it is taken for asleep."""

AGAIN = 0.002
"""Seconds from one signal to the next: one read after another may be such a one."""

HANGS = 2.0
"""Seconds of signals in one step after which nothing wakes it."""

REMINDER = 30.0
"""Seconds until that is told again."""

SIGNAL = signal.SIGURG
"""Without effect, also on a program that is run next in this process."""

_LOOP = Poller.select.__code__


class Step:
    """What a loop is at in turn ``turn``, by its innermost frame, after ``cpu`` seconds of CPU
    time."""

    def __init__(self, turn: int, innermost: FrameType, cpu: float) -> None:
        self.turn = turn
        self.cpu = cpu
        self.where = innermost.f_code.co_qualname
        self.looks_up = False
        """Whether it looks something up. No signal ends that: who goes on had no CPU for it."""
        self.host = ""
        """The directory that is looked up, if one is."""
        self.watcher: Watcher | None = None
        """Who is read from, or what else the loop does is done for."""
        frame: FrameType | None = innermost
        while frame is not None and frame.f_code is not _LOOP:
            one = frame.f_locals.get("self")
            if isinstance(one, Hosts):
                self.looks_up = True
                self.host = self.host or frame.f_locals.get("directory", "")
            if self.watcher is None and hasattr(one, "abandon"):
                self.watcher = one
            frame = frame.f_back
        self._key = (turn, innermost.f_code, innermost.f_lasti, id(self.watcher))

    def asleep(self, now: "Step", seconds: float) -> bool:
        """Say whether the loop has slept in this step for the seconds up to now."""
        return now._key == self._key and now.cpu - self.cpu < seconds * LITTLE


class Watchdog:
    """Watches the loop of ``poller``, which runs in the thread that makes this.

    ``slept`` is called in the loop, with whom it has slept for; ``hangs`` in the watchdog's own
    thread, with a step that does not end, every ``REMINDER`` as long as it does not.
    """

    def __init__(
        self, poller: Poller, slept: Callable[[Watcher], None], hangs: Callable[[Step], None]
    ) -> None:
        self._poller = poller
        self._slept = slept
        self._hangs = hangs
        self._loop = _thread.get_ident()
        self._cpu = time.pthread_getcpuclockid(self._loop)
        self._found: list[Watcher] = []
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        poller.attend(self._event, self._tell)
        self._over = False

    def start(self) -> None:
        """Begin. Raises RuntimeError where there can be no thread."""
        # Python's own handlers interrupt a system call.
        signal.signal(SIGNAL, lambda _number, _frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})
        rest = select.poll()
        for fd in (self._poller.fileno(), self._event):
            rest.register(fd, select.POLLIN)
        _thread.start_new_thread(self._run, (rest,))

    def close(self) -> None:
        """Look no more."""
        self._over = True
        os.eventfd_write(self._event, 1)
        self._poller.forget(self._event)
        os.close(self._event)

    def _run(self, rest: select.poll) -> None:
        # They are the loop's.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # Where the clocks that it needs are refused (by libfaketime, say), it is over.
        with contextlib.suppress(OSError):
            while not self._over:
                try:
                    rest.poll()
                    self._look_on()
                except NO_MEMORY:
                    time.sleep(LOOK)

    def _look_on(self) -> None:
        """Look at the loop as long as it is at work."""
        before: Step | None = None
        looks, turn = 0, -1
        while not self._over:
            begun = time.monotonic()
            time.sleep(LOOK)
            step = self._step()
            if step is None and turn == self._poller.turn:
                return
            turn = self._poller.turn
            in_time = time.monotonic() - begun < LATE
            asleep = before and step and before.asleep(step, LOOK) and in_time
            before, looks = step, looks + 1 if asleep else 1
            if step and looks >= LOOKS:
                self._wake(step)
                before = None

    def _step(self) -> Step | None:
        """See what the loop is at; None while it waits for events."""
        frame = sys._current_frames().get(self._loop)
        if frame is None or frame.f_code is _LOOP:
            return None
        return Step(self._poller.turn, frame, time.clock_gettime(self._cpu))

    def _wake(self, step: Step) -> None:
        """Wake the loop, whatever it sleeps in, until it comes to its next turn."""
        asleep, hangs, tell_at = True, False, time.monotonic() + HANGS
        while not self._over:
            if asleep:
                signal.pthread_kill(self._loop, SIGNAL)
            seconds = LOOK if hangs else AGAIN
            time.sleep(seconds)
            now = self._step()
            if now is not None and step.asleep(now, seconds):
                step, asleep = now, True
                if time.monotonic() > tell_at:
                    hangs, tell_at = True, time.monotonic() + REMINDER
                    self._hangs(step)
                continue
            if asleep and not hangs and not step.looks_up and step.watcher is not None:
                self._found.append(step.watcher)
                os.eventfd_write(self._event, 1)
            if now is None or now.turn != step.turn:
                return
            step, asleep, hangs, tell_at = now, False, False, time.monotonic() + HANGS

    def _tell(self) -> None:
        with contextlib.suppress(BlockingIOError):  # an event may be stale
            os.eventfd_read(self._event)
        while self._found:
            self._slept(self._found.pop())
