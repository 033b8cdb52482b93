"""Renewal: how the process that comes next gets what this one has open.

Where a service manager watches us (NOTIFY_SOCKET), it starts the next process, and keeps parcels
for it meanwhile in its file descriptor store. Elsewhere the next process is this one: the program
is run anew in it by execve(2), so that whoever started us sees no change. Either way nobody gives
up a connection before it is known that somebody will go on with it.
"""

import asyncio
import os
import resource
import signal
import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Protocol

from sniproxy.dataplane.handover import MESSAGES_AT_LEAST
from sniproxy.dataplane.state import MOST, reads_ours
from sniproxy.log.log import Log
from sniproxy.process.notify import Store
from sniproxy.process.parcel import Parcel
from sniproxy.process.program import why_not_to_run
from sniproxy.process.server import DRAIN, RESERVE
from sniproxy.version import FORMATS_OPTION

TRIAL = 5.0
"""Seconds that the program to be run anew has to say what it is."""

_AGAIN = 0.1
"""Seconds between two looks at whether few enough connections are left."""

_CONNECTIONS_OF_A_PARCEL = 1500
"""At least, with the longest names and the kernel's default buffers."""

_LONGEST_ANSWER = 4096
_EXCERPT = 200


class Owner(Protocol):
    """Who has the connections: the only process, or the first of several."""

    async def counts(self) -> list[int]:
        """Count the open connections of each process."""

    def hand_over(self, keep: Callable[[Parcel], None], shares: Sequence[int]) -> None:
        """Accept no more, and have each process give away its share, in descriptors: unless
        everything is being ended already."""

    def stop(self, reason: str) -> None:
        """Accept no more, and finish what was accepted."""


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
        self._task: asyncio.Task[None] | None = None

    def ask(self, loop: asyncio.AbstractEventLoop, owner: Owner, log: Log) -> None:
        """Begin, unless it has been begun."""
        if not self.under_way:
            self._task = loop.create_task(self._renew(owner, log))

    @property
    def under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Leave off, before the loop is closed."""
        if self._task is not None and self.under_way:
            self._task.cancel()
            loop.run_until_complete(asyncio.wait([self._task]))

    async def _renew(self, owner: Owner, log: Log) -> None:
        deadline = time.monotonic() + DRAIN
        if not self.store.managed:
            try:
                problem = await self._try()
            except OSError as error:
                problem = str(error)
            if problem is not None:
                log.error("not_renewed", problem=problem)
                return
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit -= limit // MOST + RESERVE
        counts = await owner.counts()
        parcels = sum(count // _CONNECTIONS_OF_A_PARCEL + 1 for count in counts)
        if self.store.managed and not self.store.has_room(parcels):
            log.warning(
                "not_handed_over",
                problem=f"the service manager does not keep {parcels} descriptors for us "
                "(FileDescriptorStoreMax=): connections have ten seconds to end",
            )
            owner.stop(signal.SIGUSR2.name)
            return
        # A user may not have more descriptors under way than one process may have open (unix(7),
        # ETOOMANYREFS). Until few enough are left, all are served.
        while sum(map(_needs, counts)) > limit and time.monotonic() < deadline:
            await asyncio.sleep(_AGAIN)
            counts = await owner.counts()
        owner.hand_over(self.keep, _shares(counts, limit))

    def keep(self, parcel: Parcel) -> None:
        """Take a copy of a parcel to where the next process finds it. Raises OSError."""
        if self.store.managed:
            self.store.put(parcel.socket.fileno(), parcel.name)
        else:
            self.parcels.append(Parcel(parcel.socket.dup(), parcel.count))

    async def _try(self) -> str | None:
        """Ask the program what it is; say why it is not to be run anew, None if it may be. Raises
        OSError where it can't be run at all."""
        if self._program is None:
            return "it is not known which file to run: start it by an absolute path"
        problem = why_not_to_run(self._program)
        if problem is not None:
            return f"not safe to run: {problem}"
        file = self._program[0]
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            # Not our standard input: Python does not start where that is a directory.
            standard = [
                (os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate((ours, theirs, theirs))
            ]
            pid = os.posix_spawn(
                file,
                [*self._program, FORMATS_OPTION],
                self._environment,
                file_actions=standard,
                setsigmask=(),
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        try:
            answer = await asyncio.wait_for(_read_all(ours), TRIAL)
        except TimeoutError:
            return f"{file}: it did not say what it is in {TRIAL:g} seconds"
        finally:
            os.close(ours)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if not reads_ours(answer.decode("utf-8", "replace")):
            return f"{file}: it can't go on with our connections: {answer[-_EXCERPT:]!a}"
        return None


async def _read_all(fd: int) -> bytes:
    """Read a pipe to its end."""
    loop = asyncio.get_running_loop()
    more = asyncio.Event()
    loop.add_reader(fd, more.set)
    data = b""
    try:
        while len(data) < _LONGEST_ANSWER:
            await more.wait()
            more.clear()
            some = os.read(fd, _LONGEST_ANSWER)
            if not some:
                break
            data += some
    finally:
        loop.remove_reader(fd)
    return data


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
