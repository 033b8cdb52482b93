"""Asking: questions to the resolver processes, and who waits for their answers.

Nothing here ever waits. So many questions are under way that the processes never run out of them,
and the rest is kept here; each is dropped when whoever asks has gone, and an answer that nobody
waits for any more is closed with the socket that it brings.
"""

import contextlib
import functools
import itertools
import os
import struct
from collections import deque
from collections.abc import Callable
from socket import (
    AF_UNIX,
    CMSG_LEN,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_PEEK,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SocketType,
)
from typing import NamedTuple, Protocol

from sniproxy.dataplane.barred import Barred
from sniproxy.dataplane.poller import Poller, Watcher
from sniproxy.dataplane.sweep import Sweep
from sniproxy.log.log import Log
from sniproxy.resolver.answer import (
    HEAD,
    LONGEST,
    OWNER,
    Answer,
    Outcome,
    answered,
    ask,
    known,
)
from sniproxy.resolver.naming import directory_name
from sniproxy.resolver.reach import HOSTS_DIRECTORY_HANGS, OWNER_BARRED

UNDER_WAY = 32
"""Questions of a process that have been sent and not answered: a resolver needs some 50 µs for
each. The socket takes those of several workers; where it does not, they are sent later."""

LOOK = 0.1
"""Seconds without an answer after which the warden is to see whether something hangs."""

PATIENCE_IN_TROUBLE = 10
"""Looks in a row at which nobody can look up, after which that is what clients are told."""

LOST = 10
"""Looks after which a question that has no answer is asked once more: who dies right when it takes
one, on a busy machine, takes it along, and nobody knows."""

MOST_OWNERS = 1024
"""Entries of which it is remembered whose they are."""

_DESCRIPTOR = struct.Struct("i")
_RIGHTS = CMSG_LEN(_DESCRIPTOR.size)
_FLAGS = MSG_DONTWAIT | MSG_CMSG_CLOEXEC
_UNIX = int(AF_UNIX)
_STREAM_NONBLOCK = SOCK_STREAM.value | SOCK_NONBLOCK.value
_head = HEAD.unpack_from


class Desk(NamedTuple):
    """Where a process asks: sockets for questions, to wake a resolver, for its answers, and to the
    warden, all of which are others' as well. ``trouble`` says why nobody looks up now, or
    nothing."""

    worker: int
    questions: SocketType
    waker: SocketType
    answers: SocketType
    warden: SocketType
    trouble: Callable[[], str]


class Asker(Watcher, Protocol):
    """Who waits for an answer."""

    def answered(self, said: Answer, backend: SocketType | None) -> None:
        """Go on with the answer, and with the socket of a backend that it has found: None where
        there was no descriptor for it."""

    def served(self, backend: SocketType | None, version: int, owner: int) -> None:
        """Go on with the usual answer, likewise."""

    def may_wait(self) -> bool:
        """Say whether there is time left."""

    def once_more(self) -> None:
        """Ask again, unless that was done: the question may have been lost."""

    def unanswered(self, reason: str) -> None:
        """End: there is no answer in time."""


class Asking:
    """The questions of one process."""

    def __init__(self, desk: Desk, poller: Poller, log: Log, later: Callable[..., object]) -> None:
        self._desk = desk
        # What each question needs, without the way to it.
        self._worker = desk.worker
        self._send, self._take = desk.questions.send, desk.answers.recvmsg
        self._poller = poller
        self._log = log
        # A worker that was started anew gets answers to the questions of the one before.
        self._numbers = itertools.count(os.getpid() << 32)
        self._under_way: dict[int, Asker] = {}
        self._unsent: dict[int, tuple[Asker, bytes]] = {}
        self._reserves: dict[int, SocketType] = {}
        """Descriptors that are held so that there is one for what an answer brings."""
        self._waking = False
        """Whether a resolver is to be woken at the end of this turn."""
        self._oldest = 0
        self._troubled = 0
        self._looks: deque[int] = deque([0], maxlen=LOST)
        """At each of the last looks, the number behind those of all that had been asked."""
        self.owners: dict[str, int] = {}
        """Whose entries are whose, of some that have been asked for."""
        self.reached: dict[str, int] = {}
        """Whose entries were whose when they were first reached, of all hosts that have a row."""
        self._stuck: dict[int, tuple[Asker, bytes]] = {}
        """Questions about others, while the hosts directory is held."""
        self._barred: Barred | None = None
        self._turned_away: dict[int, Asker] = {}
        self.ask = self._look_up = self._ask
        self._sweep = Sweep(later, LOOK, self._look)
        poller.attend(desk.answers.fileno(), self._receive)

    def _ask(
        self, asker: Asker, host: str, validates: int, reserve: SocketType | None = None
    ) -> int:
        """Ask for the backend of a host; give the number by which to ``forget`` it. A ``reserve``
        is closed for the socket that the answer brings, right before that is taken."""
        self._sweep.wake()
        number = next(self._numbers)
        if reserve is not None:
            self._reserves[number] = reserve
        message = ask(number, self._worker, validates, host)
        if self._unsent or not self._sent(number, asker, message):
            self._unsent[number] = asker, message
        return number

    def _ask_for_known(
        self, asker: Asker, host: str, validates: int, reserve: SocketType | None = None
    ) -> int:
        """Do as ``ask`` does, while the hosts directory is held."""
        owner = self.reached.get(directory_name(host))
        if owner is not None:
            return self._ask(asker, known(host, owner), validates, reserve)
        self._sweep.wake()
        number = next(self._numbers)
        if reserve is not None:
            self._reserves[number] = reserve
        self._stuck[number] = asker, ask(number, self._worker, validates, host)
        return number

    def _see_trouble(self) -> str:
        """See whether there is trouble, and ask only for what can be looked up in it."""
        trouble = self._desk.trouble()
        if trouble == HOSTS_DIRECTORY_HANGS:
            self._look_up = self._ask_for_known
        else:
            self._look_up = self._ask
            self._unsent |= self._stuck
            self._stuck.clear()
        self.ask = self._ask_unless_barred if self._barred else self._look_up
        return trouble

    def bar(self, barred: Barred, account: str | int) -> None:
        """Ask for no host that is ``barred``, and have no resolver connect to one of an owner who
        has just been: what his backends pass would be closed here, one after the other."""
        self._barred = barred
        self._see_trouble()
        if isinstance(account, int):
            with contextlib.suppress(OSError):
                self._desk.warden.send(OWNER.pack(account), MSG_DONTWAIT)

    def _ask_unless_barred(
        self, asker: Asker, host: str, validates: int, reserve: SocketType | None = None
    ) -> int:
        """Do as ``ask`` does, while somebody is barred."""
        if not self._barred:
            self._see_trouble()
        elif self._barred.holds(directory_name(host)):
            self._sweep.wake()
            number = next(self._numbers)
            self._turned_away[number] = asker
            if reserve is not None:
                reserve.close()
            return number
        return self._look_up(asker, host, validates, reserve)

    def note(self, directory: str, owner: int) -> None:
        """Remember whose an entry is."""
        if len(self.owners) >= MOST_OWNERS:
            self.owners.clear()
        self.owners[directory] = owner

    def forget(self, number: int) -> None:
        """Wait no more for an answer."""
        self._under_way.pop(number, None)
        self._unsent.pop(number, None)
        self._stuck.pop(number, None)
        self._turned_away.pop(number, None)
        self._give_way(number)

    def _give_way(self, number: int) -> None:
        reserve = self._reserves.pop(number, None)
        if reserve is not None:
            reserve.close()

    def _sent(self, number: int, asker: Asker, message: bytes) -> bool:
        if len(self._under_way) >= UNDER_WAY:
            return False
        if not self._waking:
            self._poller.again(self)
            self._waking = True
        try:
            self._send(message, MSG_DONTWAIT)
        except OSError:  # full of others' questions; or this is the end
            return False
        self._under_way[number] = asker
        return True

    # Questions wake nobody by themselves: who is woken by the first takes this processor from us,
    # to find nothing behind it, and so on. What the poller calls when the others had their turn:

    def resume(self) -> None:
        """Wake a resolver, for all questions of a turn."""
        self._waking = False
        with contextlib.suppress(OSError):  # it has not looked since many others have; or the end
            self._desk.waker.send(b"!", MSG_DONTWAIT)

    def ready(self, mask: int) -> None:
        """Never called: it has no descriptor of its own."""

    def abandon(self) -> None:
        """Wake one at the next question: whoever waits asks once more."""

    def stop(self) -> bool:
        return False

    def _send_more(self) -> None:
        while self._unsent:
            number, (asker, message) = next(iter(self._unsent.items()))
            if not self._sent(number, asker, message):
                return
            self._unsent.pop(number)

    def _receive(self) -> None:
        """Take what has been answered. Where nothing is under way any more, nothing else can be
        there, and what comes late is an event of its own."""
        under_way = self._under_way
        while True:
            try:
                if self._reserves:
                    message = self._desk.answers.recv(LONGEST, MSG_DONTWAIT | MSG_PEEK)
                    self._give_way(_head(message)[0])
                message, rights, _, _ = self._take(LONGEST, _RIGHTS, _FLAGS)
            except BlockingIOError:
                return
            number, outcome, version, _, _, owner = _head(message)
            asker = under_way.pop(number, None)
            backend = None
            if rights:
                (fd,) = _DESCRIPTOR.unpack(rights[0][2])
                if asker is None:
                    os.close(fd)
                else:
                    backend = SocketType(_UNIX, _STREAM_NONBLOCK, 0, fd)
            if self._unsent:
                self._send_more()
            if asker is not None:
                if len(message) > HEAD.size or outcome:
                    if outcome == Outcome.AGAIN:
                        self._see_trouble()
                    act = functools.partial(asker.answered, answered(message)[1], backend)
                else:
                    act = functools.partial(asker.served, backend, version, owner)
                self._poller.guard(asker, act)
            if not under_way:
                return

    def _look(self) -> bool:
        """See who waits in vain; say whether anybody waits."""
        trouble = self._see_trouble()
        turned_away, self._turned_away = self._turned_away, {}
        for asker in turned_away.values():
            self._poller.guard(asker, functools.partial(asker.unanswered, OWNER_BARRED))
        self._send_more()
        oldest = next(iter(self._under_way), 0)
        if oldest and oldest == self._oldest:
            try:
                self._desk.warden.send(b"?", MSG_DONTWAIT)
            except OSError:  # it has not looked since many others have asked
                pass
            self.resume()  # should memory have failed for it
        self._oldest = oldest
        self._troubled = self._troubled + 1 if trouble else 0
        given_up = self._troubled >= PATIENCE_IN_TROUBLE
        lost = 0 if trouble else self._looks[0]
        self._looks.append(next(self._numbers))
        waiting = [*self._under_way.items()]
        for some in (self._unsent, self._stuck):
            waiting += [(number, asker) for number, (asker, _) in some.items()]
        for number, asker in waiting:
            # While the hosts directory is held, others are answered.
            hopeless = given_up and (number in self._stuck or trouble != HOSTS_DIRECTORY_HANGS)
            if hopeless or not asker.may_wait():
                self.forget(number)
                reason, _, error = (trouble or "no_answer").partition(" ")
                self._log.warning(reason, **({"error": error} if error else {}))
                self._poller.guard(asker, functools.partial(asker.unanswered, reason))
            elif number < lost and number in self._under_way:
                self._poller.guard(asker, asker.once_more)
        return bool(self._under_way or self._unsent or self._stuck)
