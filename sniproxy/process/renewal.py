"""Renewal: how the process that comes next gets what this one has open.

Where a service manager watches us (NOTIFY_SOCKET), it starts the next process, and keeps parcels
for it meanwhile in its file descriptor store. Elsewhere the next process is this one: the program
is run anew in it by execve(2), so that whoever started us sees no change. Either way nobody gives
up a connection before it is known that somebody will go on with it.
"""

import os
import resource
import signal
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Protocol

from sniproxy.dataplane.handover import MESSAGES_AT_LEAST
from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.state import MOST, reads_ours
from sniproxy.dataplane.timers import NO_MEMORY
from sniproxy.log.log import Log
from sniproxy.process.notify import CLOSING, Store
from sniproxy.process.parcel import Parcel
from sniproxy.process.program import why_not_to_run
from sniproxy.process.server import RESERVE
from sniproxy.process.worker import NOBODY
from sniproxy.version import FORMATS_OPTION

TRIAL = 5.0
"""Seconds that the program to be run anew has to say what it is."""

ROOM = 7.0
"""Seconds that connections for which there is no room have to end, while all are served. What is
left of the ten that a service manager waits is for packing."""

_AGAIN = 0.1
"""Seconds between two looks at whether few enough connections are left."""

_CONNECTIONS_OF_A_PARCEL = 1500
"""At least, with the longest names and the kernel's default buffers."""

_LONGEST_ANSWER = 4096
_EXCERPT = 200


class Owner(Protocol):
    """Who has the connections: the only process, or the first of several."""

    handed_over: bool
    """Whether they have been given away, and not only ended."""

    def count(self, then: Callable[[list[int]], object]) -> None:
        """Call ``then`` with the number of open connections of each process."""

    def hand_over(self, keep: Callable[[Parcel], None], shares: Sequence[int]) -> None:
        """Accept no more, and have each process give away its share, in descriptors: unless
        everything is being ended already."""

    def stop(self, reason: str) -> bool:
        """Accept no more and finish; False says that everything is being ended already."""

    def stop_now(self, reason: str) -> None:
        """Close everything."""


class Renewal:
    """The next process of this program, if it is asked for. ``program`` is the command to run anew
    in this process, or None."""

    def __init__(
        self, environment: MutableMapping[str, str], program: Sequence[str] | None
    ) -> None:
        self.store = Store(environment)
        self.parcels: list[Parcel] = []
        """For the next program in this process."""
        self._environment = environment
        self._program = program
        self.under_way = False
        self._trial: _Trial | None = None

    @property
    def trying(self) -> bool:
        """Whether a program that was asked what it is has not answered yet."""
        return self._trial is not None and not self._trial.over

    def close(self) -> None:
        """End the program that is on trial: it goes with us."""
        if self._trial is not None:
            self._trial.close()

    def ask(self, poller: Poller, owner: Owner, log: Log) -> None:
        """Begin, unless it has been begun."""
        if self.under_way:
            return

        def tried(problem: str | None) -> None:
            if problem is None:
                owner.count(begin)
            else:
                self.under_way = False
                log.reply_error("not_renewed", problem=problem)

        def find_room(counts: list[int]) -> None:
            parcels = sum(count // _CONNECTIONS_OF_A_PARCEL + 1 for count in counts)
            kept = self.store.try_room(parcels)

            def decide() -> None:
                if kept():
                    owner.count(begin)
                    return
                log.warning(
                    "not_handed_over",
                    problem=f"the service manager does not keep {parcels} descriptors for us "
                    "(FileDescriptorStoreMax=): connections have ten seconds to end",
                )
                owner.stop(signal.SIGUSR2.name)

            poller.timers.later(CLOSING, decide)

        def begin(counts: list[int]) -> None:
            # A user may not have more descriptors under way than one process may have open
            # (unix(7), ETOOMANYREFS). Until few enough are left, all are served.
            if sum(map(_needs, counts)) > limit and time.monotonic() < deadline:
                poller.timers.later(_AGAIN, lambda: owner.count(begin))
            else:
                owner.hand_over(self.keep, _shares(counts, limit))

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit -= limit // MOST + RESERVE
        deadline = time.monotonic() + ROOM
        if self.store.managed:
            owner.count(find_room)
            self.under_way = True
            return
        problem = "it is not known which file to run: start it by an absolute path"
        if self._program is not None:
            try:
                others = why_not_to_run(self._program)
                if others is None:
                    self._trial = _Trial(poller, self._program, self._environment, tried)
                    self.under_way = True
                    return
                problem = f"not safe to run: {others}"
            except OSError as error:
                problem = str(error)
        tried(problem)

    def keep(self, parcel: Parcel) -> None:
        """Take a copy of a parcel to where the next process finds it. Raises OSError."""
        if self.store.managed:
            self.store.put(parcel.socket.fileno(), parcel.name)
        else:
            self.parcels.append(Parcel(parcel.socket.dup(), parcel.count))


class _Trial:
    """Asks a program which connections it can go on with, and calls ``then`` with what is wrong
    with it, or None. Raises OSError where it can't be run at all."""

    def __init__(
        self,
        poller: Poller,
        program: Sequence[str],
        environment: Mapping[str, str],
        then: Callable[[str | None], None],
    ) -> None:
        self._poller = poller
        self._file = program[0]
        self._then = then
        self._answer = b""
        self.over = False
        self._pid = NOBODY
        self._pipe, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            # The poller may call where nothing is to be read.
            os.set_blocking(self._pipe, False)
            # Not our standard input: Python does not start where that is a directory.
            standard = ((self._pipe, 0), (theirs, 1), (theirs, 2))
            self._pid = os.posix_spawn(
                self._file,
                [*program, FORMATS_OPTION],
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in standard],
                setsigmask=(),
            )
            poller.timers.later(TRIAL, self._expire)
            poller.attend(self._pipe, self._read)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(theirs)

    def _read(self) -> None:
        try:
            some = os.read(self._pipe, _LONGEST_ANSWER)
        except BlockingIOError:
            return
        self._answer += some
        if some and len(self._answer) < _LONGEST_ANSWER:
            return
        if reads_ours(self._answer.decode("utf-8", "replace")):
            self._conclude(None)
        else:
            self._conclude(f"it can't go on with our connections: {self._answer[-_EXCERPT:]!a}")

    def _expire(self) -> None:
        if not self.over:
            problem = f"it did not say in {TRIAL:g} seconds which connections it can go on with"
            self._conclude(problem)

    def _conclude(self, problem: str | None) -> None:
        # Before it is closed, and so once more where memory fails.
        try:
            self._then(problem and f"{self._file}: {problem}")
        except NO_MEMORY:
            raise
        except BaseException:
            self.close()
            raise
        self.close()

    def close(self) -> None:
        """End it. Done again, it changes nothing."""
        if self.over:
            return
        self.over = True
        # Whoever it has started may have a copy, which would keep ours registered.
        self._poller.unwatch(self._pipe)
        os.close(self._pipe)
        if self._pid != NOBODY:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _needs(count: int) -> int:
    """Say how many descriptors are under way for so many connections: two each, and those of memory
    files and parcels."""
    return 2 * count + count // MOST + 2 * MESSAGES_AT_LEAST


def _shares(counts: Sequence[int], limit: int) -> list[int]:
    """Deal ``limit`` descriptors to processes, by what they need."""
    needs = [_needs(count) for count in counts]
    total = sum(needs)
    spare = max(0, limit - total) // max(1, len(needs))
    return [need + spare if total <= limit else need * limit // total for need in needs]
