"""Asking: questions to the resolver processes, and who waits for their answers.

Nothing here ever waits. The questions of a turn are sent together at its end: a message each would
cost more than most look-ups. So many are under way that nobody runs out of them, and the rest is
kept here; each is dropped when whoever asks has gone, and an answer that nobody waits for any more
is closed with the socket that it brings.
"""

import contextlib
import itertools
import os
from array import array
from collections import deque
from collections.abc import Callable
from socket import (
    AF_UNIX,
    CMSG_SPACE,
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
    BEGINNING,
    LONGEST,
    NOBODY,
    OWNER,
    TOGETHER,
    Answer,
    Outcome,
    Question,
    answered,
    as_answer,
    ask,
    number_of,
)
from sniproxy.resolver.naming import directory_name
from sniproxy.resolver.reach import HOSTS_DIRECTORY_HANGS, OWNER_BARRED

UNDER_WAY = 2
"""Messages of a process that have been sent and not answered: one is looked into, one is next. What
is asked meanwhile travels together, and the more there is to do the more that is."""

LOOK = 0.1
"""Seconds without an answer after which the warden is to see whether something hangs."""

PATIENCE_IN_TROUBLE = 10
"""Looks in a row at which nobody can look up, after which that is what clients are told."""

LOST = 10
"""Looks after which a question that has no answer is asked once more: who dies right when it takes
one, on a busy machine, takes it along, and nobody knows."""

MOST_OWNERS = 1024
"""Entries of which it is remembered whose they are."""

_RIGHTS = CMSG_SPACE(TOGETHER * array("i").itemsize)
_FLAGS = MSG_DONTWAIT | MSG_CMSG_CLOEXEC
_UNIX = int(AF_UNIX)
_STREAM_NONBLOCK = SOCK_STREAM.value | SOCK_NONBLOCK.value


class Desk(NamedTuple):
    """Where a process asks: sockets for questions, for its answers, and to the warden, all of which
    are others' as well. ``trouble`` says why nobody looks up now, or nothing."""

    worker: int
    questions: SocketType
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


_Asked = tuple[Asker, Question]

_NOTHING: dict[int, _Asked] = {}
_NOT_ASKED = None, None


class Asking:
    """The questions of one process."""

    def __init__(self, desk: Desk, poller: Poller, log: Log, later: Callable[..., object]) -> None:
        self._desk = desk
        self._poller = poller
        self._log = log
        # A worker that was started anew gets answers to the questions of the one before.
        self._numbers = itertools.count(os.getpid() << 32)
        self._under_way: dict[int, _Asked] = {}
        self._unsent: dict[int, _Asked] = {}
        self._stuck: dict[int, _Asked] = {}
        """Those about others than are known, while the hosts directory is held."""
        self._messages: dict[int, dict[int, _Asked]] = {}
        """What was asked in each that has no answer yet."""
        self._sent = 0
        """How many have been sent, and not answered, since the last look."""
        self._reserves: dict[int, SocketType] = {}
        """Descriptors that are held so that there is one for what an answer brings."""
        self._oldest = 0
        self._troubled = 0
        self._looks: deque[int] = deque([0], maxlen=LOST)
        """At each of the last looks, the number behind those of all that had been asked."""
        self.owners: dict[str, int] = {}
        """Whose entries are whose, of some that have been asked for."""
        self.reached: dict[str, int] = {}
        """Whose entries were whose when they were first reached, of all hosts that have a row."""
        self._held = False
        """Whether the hosts directory is."""
        self._barred: Barred | None = None
        self._turned_away: dict[int, Asker] = {}
        self.ask = self._ask
        self._sweep = Sweep(later, LOOK, self._look)
        poller.attend(desk.answers.fileno(), self._receive)

    def _ask(
        self, asker: Asker, host: str, validates: int, reserve: SocketType | None = None
    ) -> int:
        """Ask for the backend of a host; give the number by which to ``forget`` it. A ``reserve``
        is closed for the socket that the answer brings, right before that is taken."""
        if not self._unsent:
            self._sweep.wake()
            self._poller.again(self)
        number = next(self._numbers)
        if reserve is not None:
            self._reserves[number] = reserve
        question = (number, NOBODY, validates), host
        if self._held:
            self._queue(asker, question)
        else:
            self._unsent[number] = asker, question
        return number

    def _queue(self, asker: Asker, question: Question) -> None:
        """Have it sent; while the hosts directory is held, if its host was reached before."""
        (number, _, validates), host = question
        owner = self.reached.get(directory_name(host), NOBODY) if self._held else NOBODY
        queue = self._stuck if self._held and owner == NOBODY else self._unsent
        queue[number] = asker, ((number, owner, validates), host)

    def _see_trouble(self) -> str:
        """See whether there is trouble, and ask only for what can be looked up in it."""
        trouble = self._desk.trouble()
        self._held = trouble == HOSTS_DIRECTORY_HANGS
        if not self._held:
            self._unsent |= self._stuck
            self._stuck.clear()
        self.ask = self._ask_unless_barred if self._barred else self._ask
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
        return self._ask(asker, host, validates, reserve)

    @property
    def busy(self) -> bool:
        """Whether answers are on their way."""
        return bool(self._under_way or self._unsent)

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

    # What the poller calls when the others have had their turn: who is woken by a message may take
    # this processor from us.

    def resume(self) -> None:
        """Send as much as may be under way."""
        unsent = self._unsent
        while unsent and self._sent < UNDER_WAY:
            some = dict(itertools.islice(unsent.items(), TOGETHER))
            if self._reserves and not some.keys().isdisjoint(self._reserves):
                # What else its answer brought could take the descriptor that is held for it.
                some = dict(itertools.islice(some.items(), 1))
            sent = next(self._numbers)
            _, questions = zip(*some.values(), strict=True)
            try:
                self._desk.questions.send(ask(sent, self._desk.worker, questions), MSG_DONTWAIT)
            except OSError:  # full of others' questions; or this is the end
                return
            self._sent += 1
            self._messages[sent] = some
            self._under_way |= some
            for number in some:
                del unsent[number]

    def ready(self, mask: int) -> None:
        """Never called: it has no descriptor of its own."""

    def abandon(self) -> None:
        """Go on: the next look sends what was not."""

    def stop(self) -> bool:
        return False

    def _receive(self) -> None:
        """Take what has been answered. Where nothing is under way any more, nothing else can be
        there, and what comes late is an event of its own."""
        under_way = self._under_way
        while True:
            try:
                if self._reserves:
                    sent = number_of(self._desk.answers.recv(BEGINNING, MSG_DONTWAIT | MSG_PEEK))
                    for number in self._messages.get(sent, ()):
                        self._give_way(number)
                message, rights, _, _ = self._desk.answers.recvmsg(LONGEST, _RIGHTS, _FLAGS)
            except BlockingIOError:
                return
            self._read(message, _sockets(rights[0][2]) if rights else [])
            if not under_way:
                return

    def _read(self, message: bytes, backends: list[SocketType]) -> None:
        """Act on a message with answers, and the sockets of those that have one: the last first,
        and of some that come last none where there were too few descriptors."""
        under_way, unsent, guard = self._under_way, self._unsent, self._poller.guard
        sent, more, heads, texts = answered(message)
        text = 0
        for head in heads:
            number, outcome, version, _, length, _, owner = head
            asker, _ = under_way.get(number, _NOT_ASKED)
            backend = backends.pop() if backends and not outcome else None
            text += length
            if asker is None:
                if backend is not None:
                    backend.close()
                continue
            # Should memory fail up to here, it is under way still, and asked once more.
            act: Callable[..., None] = asker.served
            arguments: tuple[object, ...] = (backend, version, owner)
            if length or outcome:
                if outcome == Outcome.AGAIN:
                    self._see_trouble()
                act = asker.answered
                arguments = as_answer(head, texts[text - length : text]), backend
            del under_way[number]
            unsent.pop(number, None)  # it is there if memory failed when it was sent
            guard(asker, act, *arguments)
        if not more:
            self._sent = max(0, self._sent - 1)
            silent = self._messages.pop(sent, _NOTHING).keys() & under_way.keys()
            if silent:
                self._see_trouble()
                for number in sorted(silent):
                    self._queue(*under_way[number])
                    del under_way[number]
        if self._unsent:
            self.resume()

    def _look(self) -> bool:
        """See who waits in vain; say whether anybody waits."""
        trouble = self._see_trouble()
        turned_away, self._turned_away = self._turned_away, {}
        for asker in turned_away.values():
            self._poller.guard(asker, asker.unanswered, OWNER_BARRED)
        self._sent = 0  # an answer may be lost; while nobody answers, some more are sent
        self.resume()
        oldest = next(iter(self._under_way), 0)
        if oldest and oldest == self._oldest:
            try:
                self._desk.warden.send(b"?", MSG_DONTWAIT)
            except OSError:  # it has not looked since many others have asked
                pass
        self._oldest = oldest
        self._troubled = self._troubled + 1 if trouble else 0
        given_up = self._troubled >= PATIENCE_IN_TROUBLE
        lost = 0 if trouble else self._looks[0]
        self._looks.append(next(self._numbers))
        waiting = [*self._under_way.items(), *self._unsent.items(), *self._stuck.items()]
        for number, (asker, _) in waiting:
            # While the hosts directory is held, others are answered.
            hopeless = given_up and (number in self._stuck or trouble != HOSTS_DIRECTORY_HANGS)
            if hopeless or not asker.may_wait():
                self.forget(number)
                reason, _, error = (trouble or "no_answer").partition(" ")
                self._log.warning(reason, **({"error": error} if error else {}))
                self._poller.guard(asker, asker.unanswered, reason)
            elif number < lost and number in self._under_way:
                self._poller.guard(asker, asker.once_more)
        self._messages = {
            sent: some
            for sent, some in self._messages.items()
            if not some.keys().isdisjoint(self._under_way)
        }
        return bool(self._under_way or self._unsent or self._stuck)


def _sockets(rights: bytes) -> list[SocketType]:
    """Make sockets of descriptors that came with a message, the last first."""
    try:
        descriptors = array("i", rights)
        descriptors.reverse()
        return [SocketType(_UNIX, _STREAM_NONBLOCK, 0, fd) for fd in descriptors]
    except BaseException:
        for fd in array("i", rights):
            with contextlib.suppress(OSError):  # some are closed: they were a socket's
                os.close(fd)
        raise
