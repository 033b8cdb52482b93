"""A resolver process: it looks up and connects, for all workers, one question after the other.

It may sleep in any look-up until whoever holds a directory lets go of it. So it holds nothing that
anybody waits for, no client and no listening socket among it, and says on the board whose entry it
goes into before it does.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Sequence
from resource import RUSAGE_SELF, getrusage, struct_rusage
from socket import MSG_DONTWAIT, SCM_RIGHTS, SOL_SOCKET, SocketType
from time import monotonic_ns

from sniproxy.process.board import HANGING, HELD, PASSING, SLOW, Board, Place
from sniproxy.resolver.answer import LONGEST, OWNER, Answer, Outcome, answer, asked, knowing
from sniproxy.resolver.hosts import Hosts
from sniproxy.resolver.reach import OWNER_BARRED, OWNER_HANGS, OWNER_SLOW, Barred, fault, reach

NORMAL = 1_000_000
"""Nanoseconds that the look-ups of one question may take, at work or asleep: 20 times what they do.
While there was no CPU for them, that is not theirs."""

TOO_MUCH = 1_000_000_000
"""Nanoseconds more than normal, of all questions about an owner's entries in a ``MINUTE``."""

MINUTE = 60_000_000_000

GRACE = 1_000_000_000
"""Nanoseconds that an owner's clients wait for one that hangs: it may just have been slow."""

MOST_ACCOUNTS = 1024
"""Owners who are slow at the same time and still watched."""

GO = b"!"
CAREFULLY = b"?"
"""The same, after one has slept in the hosts directory itself."""
_WAKES = 4096
"""Times that one was woken, at most, that are as good as one."""

_REASONS = {HANGING: OWNER_HANGS, SLOW: OWNER_SLOW, PASSING: OWNER_BARRED}

_DESCRIPTOR = struct.Struct("i")


class Resolver:
    """Looks up for the warden of an ``epoch``, at its ``place``. ``waker`` can be read when there
    are questions, ``warden`` is how that says when to begin, and is told which owner is too
    slow."""

    def __init__(
        self,
        hosts: Hosts,
        board: Board,
        place: Place,
        questions: SocketType,
        waker: SocketType,
        answers: Sequence[SocketType],
        warden: SocketType,
    ) -> None:
        self._hosts = hosts
        self._board = board
        self._epoch = board.epoch
        self._place = place
        self._questions = questions
        self._waker = waker
        self._answers = answers
        self._warden = warden
        self._trusted = trusted(hosts)
        self._owed: dict[int, tuple[int, int]] = {}
        """Nanoseconds too many that an owner has had, and at which time that was so."""
        self._owner = 0
        """Whose entry was gone into last for the question under way."""
        self._known: int | None = None
        """Whose it was when it was reached before, if that is said."""
        hosts.entering = self._enter

    def run(self) -> None:
        """Wait to be needed, and answer until the proxy, or the warden, has no more use for it."""
        go = self._warden.recv(len(GO))
        if not go:
            return
        take: Callable[[int, int], bytes] = self._questions.recv
        if go == CAREFULLY:
            take = self._take_known
            self._hosts.owner = self._known_owner  # type: ignore[method-assign]
        hosts, board, place, epoch = self._hosts, self._board, self._place, self._epoch
        watched, used = 0, getrusage(RUSAGE_SELF)
        while True:
            try:
                message = take(LONGEST, MSG_DONTWAIT)
            except BlockingIOError:
                if not self._waker.recv(_WAKES):
                    return
                continue
            if not message:
                return
            number, worker, validates, host = asked(message)
            self._owner = 0
            if board.epoch != epoch:
                self._tell(worker, number, Answer(Outcome.AGAIN, host), None)
                return
            begun = place.begin(worker, number)
            # Most look-ups of most days are as they should be, and this would be a part of them.
            if begun < watched:
                used = getrusage(RUSAGE_SELF)
            try:
                said, backend = reach(hosts, host, validates)
            except Exception as error:  # of this question, no more
                said, backend = fault(host, error), None
            self._tell(worker, number, said, backend)
            if place.done():
                return
            spent = monotonic_ns() - begun
            if spent > NORMAL:
                if begun < watched:
                    self._account(taken(used, spent) - NORMAL)
                watched = begun + MINUTE

    def _take_known(self, size: int, flags: int) -> bytes:
        """Take a question; while the hosts directory is held only one about a host that was
        reached, and none about others, which whoever asks keeps meanwhile."""
        while True:
            message, self._known = knowing(self._questions.recv(size, flags))
            if not message or self._known is not None or self._board.trouble != HELD:
                return message
            number, worker, _, host = asked(message)
            self._owner = 0
            self._tell(worker, number, Answer(Outcome.AGAIN, host), None)

    def _known_owner(self, directory: str) -> int:
        """Give an entry's owner. Should that hang, it is the doing of whose it was."""
        if self._known is not None:
            self._enter(self._known)
        return Hosts.owner(self._hosts, directory)

    def _enter(self, owner: int) -> None:
        self._owner = owner
        self._place.enter(owner)
        bar = self._board.barred(owner)
        if bar is not None:
            passes = bar.why == HANGING and monotonic_ns() - bar.since < GRACE
            raise Barred(owner, _REASONS[bar.why], passes=passes)

    def _tell(self, worker: int, number: int, said: Answer, backend: SocketType | None) -> None:
        message, answers = answer(number, said, self._owner), self._answers[worker]
        # Who asked may not have taken many before this one; it stops waiting by itself.
        if backend is None:
            with contextlib.suppress(OSError):
                answers.send(message, MSG_DONTWAIT)
            return
        rights = SOL_SOCKET, SCM_RIGHTS, _DESCRIPTOR.pack(backend.fileno())
        try:
            answers.sendmsg((message,), (rights,), MSG_DONTWAIT)
        except OSError:
            pass
        backend.close()

    def _account(self, more: int) -> None:
        """Note that an owner's entries took more time than usual, by so much."""
        owner = self._place.owner
        if more <= 0 or owner is None or owner in self._trusted:
            return
        now = monotonic_ns()
        owed, then = self._owed.get(owner, (0, now))
        owed = max(0, owed - (now - then) * TOO_MUCH // MINUTE) + more
        if owed > TOO_MUCH:
            self._warden.send(OWNER.pack(owner), MSG_DONTWAIT)
            owed = 0
        if len(self._owed) >= MOST_ACCOUNTS:
            self._owed.clear()
        self._owed[owner] = owed, now


def taken(before: struct_rusage, spent: int) -> int:
    """Say how many of the nanoseconds spent since ``before`` this process has worked, or all where
    it has slept: a busy machine has it wait as well, but never asleep."""
    now = getrusage(RUSAGE_SELF)
    if now.ru_nvcsw != before.ru_nvcsw:
        return spent
    worked = now.ru_utime - before.ru_utime + now.ru_stime - before.ru_stime
    return min(spent, int(worked * 1_000_000_000))


def trusted(hosts: Hosts) -> set[int]:
    """Give the owners who are not barred for being slow, but for as long as one hangs: what is
    theirs is everybody's."""
    return {0, os.geteuid(), os.fstat(hosts.fileno()).st_uid}
