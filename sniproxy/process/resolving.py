"""A resolver process: it looks up and connects, for all workers, one question after the other.

It may sleep in any look-up until whoever holds a directory lets go of it. So it holds nothing that
anybody waits for, no client and no listening socket among it, and says on the board whose entry it
goes into before it does.
"""

import contextlib
import os
from array import array
from collections.abc import Sequence
from resource import RUSAGE_SELF, getrusage, struct_rusage
from socket import MSG_DONTWAIT, SCM_RIGHTS, SOL_SOCKET, SocketType
from time import monotonic_ns

from sniproxy.process.board import HANGING, HELD, PASSING, SLOW, Board, Place
from sniproxy.resolver.answer import LONGEST, NOBODY, OWNER, answer, answers, asked
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

_REASONS = {HANGING: OWNER_HANGS, SLOW: OWNER_SLOW, PASSING: OWNER_BARRED}


class Resolver:
    """Looks up for the warden of an ``epoch``, at its ``place``. ``warden`` is how that says when
    to begin, and is told which owner is too slow."""

    def __init__(
        self,
        hosts: Hosts,
        board: Board,
        place: Place,
        questions: SocketType,
        answers: Sequence[SocketType],
        warden: SocketType,
    ) -> None:
        self._hosts = hosts
        self._board = board
        self._epoch = board.epoch
        self._place = place
        self._questions = questions
        self._answers = answers
        self._warden = warden
        self._trusted = trusted(hosts)
        self._owed: dict[int, tuple[int, int]] = {}
        """Nanoseconds too many that an owner has had, and at which time that was so."""
        self._owner = 0
        """Whose entry was gone into last for the question under way."""
        self._asked = 0, 0
        """The worker whose message is under way, and its number."""
        self._said: list[tuple[bytes, str]] = []
        self._backends: list[SocketType] = []
        """What was found and not told yet, for whom ..."""
        self._whose = 0
        """... of which owner's entry the last was."""
        hosts.entering = self._enter

    def run(self) -> None:
        """Wait to be needed, and answer until the proxy, or the warden, has no more use for it."""
        go = self._warden.recv(len(GO))
        if not go:
            return
        board, place, epoch = self._board, self._place, self._epoch
        watched = 0  # until when look-ups are measured, since one was slow
        while True:
            message = self._questions.recv(LONGEST)
            if not message:
                return
            sent, worker, questions = asked(message)
            self._asked = worker, sent
            if board.epoch != epoch:  # those of another warden look now
                self._tell()
                return
            place.take(worker, sent)
            # Whoever asks keeps the others until they can be looked up without being held.
            only_known = go == CAREFULLY and board.trouble == HELD
            for (number, owner, validates), host in questions:
                if only_known and owner == NOBODY:
                    continue
                self._owner = 0
                begun = place.begin(number)
                # Most look-ups of most days are as they should be: this would be a part of them.
                used = getrusage(RUSAGE_SELF) if begun < watched else None
                try:
                    found, backend = reach(self._hosts, host, validates, owner)
                except Exception as error:  # of this question, no more
                    found, backend = fault(host, error), None
                self._said.append(answer(number, found, self._owner))
                if backend is not None:
                    self._backends.append(backend)
                spent = monotonic_ns() - begun
                if spent > NORMAL:
                    if place.owner not in self._trusted:
                        if used is not None:
                            self._account(taken(used, spent) - NORMAL)
                        watched = begun + MINUTE
                    if place.given_up or board.epoch != epoch:
                        break
                    self._tell(more=True)  # the others have waited long enough
            self._tell()
            if place.given_up or board.epoch != epoch:  # the place is another's by now
                return
            place.done()

    def _enter(self, owner: int) -> None:
        """Go into an owner's entry, where he may hold us, but with nothing of another's."""
        if owner != self._whose:
            if self._said and owner not in self._trusted:
                self._tell(more=True)
            self._whose = owner
        self._owner = owner
        self._place.enter(owner)
        bar = self._board.barred(owner)
        if bar is not None:
            passes = bar.why == HANGING and monotonic_ns() - bar.since < GRACE
            raise Barred(owner, _REASONS[bar.why], passes=passes)

    def _tell(self, *, more: bool = False) -> None:
        """Tell what was found; whether ``more`` comes of the same message."""
        worker, sent = self._asked
        said, backends, rights = self._said, self._backends, []
        self._said, self._backends = [], []
        if backends:
            descriptors = array("i", [backend.fileno() for backend in backends])
            rights.append((SOL_SOCKET, SCM_RIGHTS, descriptors))
        message = (answers(sent, said, more=more),)
        # Who asked may not have taken many before these; it stops waiting by itself.
        with contextlib.suppress(OSError):
            self._answers[worker].sendmsg(message, rights, MSG_DONTWAIT)
        for backend in backends:
            backend.close()

    def _account(self, more: int) -> None:
        """Note that an owner's entries took more time than usual, by so much."""
        owner = self._place.owner
        if more <= 0 or owner is None:
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
