"""The warden: it keeps a resolver process at work, and another ready.

It looks up nothing itself, so nothing can hold it. It sleeps until somebody waits in vain for an
answer: then the resolver that hangs is given up, the one that is ready takes its place, and nobody
goes into the entries of the owner who holds it until it comes loose. So each owner who does that
costs one process, whatever the number of names. Where it is the hosts directory itself that is
held, another would hang likewise, and so those who come after it look up only hosts that were
reached before: the kernel knows where they are.
"""

import contextlib
import errno
import os
import select
import time
from _socket import socketpair
from collections.abc import Iterator, Sequence
from socket import AF_UNIX, MSG_DONTWAIT, SOCK_SEQPACKET, SocketType

from sniproxy.process.board import FOREVER, HELD, NO_PROCESS, PASSING, PLACES, SLOW, Bar, Board
from sniproxy.process.resolving import CAREFULLY, GO, MINUTE, Resolver, trusted
from sniproxy.resolver.answer import OWNER, Answer, Outcome, answer, answers
from sniproxy.resolver.hosts import Hosts
from sniproxy.resolver.reach import hanging

HANGS = 100_000_000
"""Nanoseconds after which a question has been under way for too long: a thousand times as long as
usual, and as long as everybody else waits for it once."""

AGAIN = 1.0
"""Seconds between two tries to start a process, where there was none to be had or it has died."""


_AGAIN = Answer(Outcome.AGAIN, "")


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """End the process, which was just forked, behind what it does: no word of it, and nothing of
    its parent, may go on in a second process."""
    try:
        yield
    finally:
        os._exit(0)


class _Child:
    """A resolver process, at the other end of a socket that ends with it."""

    def __init__(self, number: int, socket: SocketType) -> None:
        self.number = number
        self.socket = socket
        self.pid = 0
        self.holder: int | None = None
        """Who holds it, if it was given up and that is known."""


class Warden:
    """In a process of its own. ``answers`` are the ends at which workers are answered; the ``bell``
    is rung by who waits in vain, and ends with the last who could; ``life`` ends with us."""

    def __init__(
        self,
        hosts: Hosts,
        board: Board,
        questions: SocketType,
        answers: Sequence[SocketType],
        bell: SocketType,
        life: SocketType,
    ) -> None:
        self._hosts = hosts
        self._board = board
        self._questions = questions
        self._answers = answers
        self._bell = bell
        self._life = life
        self._trusted = trusted(hosts)
        self._children: dict[int, _Child] = {}
        self._active: _Child | None = None
        self._spare: _Child | None = None
        self._held: list[_Child] = []
        self._go = GO
        self._bars: dict[int, Bar] = {}
        self._given_up_at: dict[int, int] = {}
        self._free = list(range(PLACES))
        self._poll = select.poll()
        self._not_before = 0.0
        board.begin()

    def run(self) -> None:
        """Keep resolvers until all who could ask have gone."""
        self._poll.register(self._bell.fileno(), select.POLLIN)
        while True:
            pause = self._keep()
            for fd, _ in self._poll.poll(pause):
                if fd != self._bell.fileno():
                    self._hear(self._children[fd])
                    continue
                message = self._bell.recv(OWNER.size)
                if not message:
                    return
                if len(message) == OWNER.size:
                    self._bar_for_a_minute(message, PASSING)
                else:
                    self._look()

    def _keep(self) -> float | None:
        """Have one at work and one ready; give the milliseconds until that is to be tried again,
        None where it is so."""
        if self._active is None:
            self._active, self._spare = self._spare or self._start(), None
            if self._active is not None:
                with contextlib.suppress(OSError):  # it has just died
                    self._active.socket.send(self._go)
                self._board.trouble = HELD if self._held else 0
        if self._active is not None and self._spare is None:
            self._spare = self._start()
        if self._active is None or self._spare is None:
            return max(1.0, (self._not_before - time.monotonic()) * 1000)
        return None

    def _start(self) -> _Child | None:
        if time.monotonic() < self._not_before:
            return None
        try:
            return self._fork()
        except OSError as error:
            self._not_before = time.monotonic() + AGAIN
            if self._active is None:
                self._board.trouble = NO_PROCESS + (error.errno or 0)
            return None

    def _fork(self) -> _Child:
        if not self._free:
            raise BlockingIOError(errno.EAGAIN, "as many hang as may be")
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        child = _Child(self._free.pop(), ours)
        place = self._board.place(child.number)
        place.clear()
        try:
            child.pid = os.fork()
        except OSError:
            self._free.append(child.number)
            ours.close()
            theirs.close()
            raise
        if not child.pid:
            with leaving():
                self._bell.close()
                self._life.close()
                for one in (child, *self._children.values()):
                    one.socket.close()
                questions, answers = self._questions, self._answers
                Resolver(self._hosts, self._board, place, questions, answers, theirs).run()
        theirs.close()
        self._children[ours.fileno()] = child
        self._poll.register(ours.fileno(), select.POLLIN)
        return child

    # What happens.

    def _look(self) -> None:
        """See whether the one at work hangs: somebody waits for an answer."""
        child = self._active
        if child is None:
            return
        place, now = self._board.place(child.number), time.monotonic_ns()
        since, (worker, message, number), owner = place.since, place.question, place.owner
        if not since or now - since < HANGS or place.since != since:
            return
        place.give_up()
        self._active = None
        if owner is None:
            self._held.append(child)
            self._go = CAREFULLY
            self._board.trouble = HELD
            self._tell(worker, message, number, _AGAIN)
            return
        child.holder = owner
        self._bar(Bar(owner, now, FOREVER))
        self._tell(worker, message, number, hanging(owner))

    def _bar(self, bar: Bar) -> None:
        now = time.monotonic_ns()
        self._bars = {owner: one for owner, one in self._bars.items() if one.until > now}
        self._bars[bar.owner] = bar
        self._board.bar(self._bars)

    def _tell(self, worker: int, message: int, number: int, said: Answer) -> None:
        """Answer one question of a message; the others of it are asked once more."""
        with contextlib.suppress(OSError):
            self._answers[worker].send(answers(message, [answer(number, said)]), MSG_DONTWAIT)

    def _hear(self, child: _Child) -> None:
        message = b""
        with contextlib.suppress(ConnectionError):
            message = child.socket.recv(OWNER.size)
        if message:
            self._bar_for_a_minute(message, SLOW)
        else:
            self._ended(child)

    def _bar_for_a_minute(self, message: bytes, why: int) -> None:
        """Bar an owner, unless he is for longer."""
        (owner,) = OWNER.unpack(message)
        now = time.monotonic_ns()
        bar = self._bars.get(owner)
        if bar is None or bar.until < now + MINUTE:
            self._bar(Bar(owner, now, now + MINUTE, why))

    def _ended(self, child: _Child) -> None:
        self._poll.unregister(child.socket.fileno())
        del self._children[child.socket.fileno()]
        child.socket.close()
        os.waitpid(child.pid, 0)
        place = self._board.place(child.number)
        if child is self._active:
            self._active = None
            if place.question[1]:
                self._tell(*place.question, _AGAIN)
        if child is self._spare:
            self._spare = None
        if child in self._held:
            self._held.remove(child)
            if not self._held and self._board.trouble == HELD:
                self._board.trouble = 0
        elif child.holder is not None:
            self._release(child.holder)
        else:
            self._not_before = time.monotonic() + AGAIN
        self._free.append(child.number)

    def _release(self, owner: int) -> None:
        """Go into an owner's entries again: at once, or after a minute where that is not the first
        time in a minute that one of them has hung."""
        now = time.monotonic_ns()
        last = {one: at for one, at in self._given_up_at.items() if now - at < MINUTE}
        again = owner in last and owner not in self._trusted
        self._given_up_at = {**last, owner: now}
        bar = self._bars.pop(owner)
        self._bar(bar._replace(until=now + MINUTE if again else 0))
