"""A desk to ask at, whose other side the test takes."""

import socket
from collections.abc import Callable
from typing import NamedTuple

from sniproxy.dataplane.asking import Desk
from sniproxy.resolver.answer import asked


class Question(NamedTuple):
    """What ``ask`` was given."""

    number: int
    worker: int
    validates: int
    host: str


class Counter:
    """What resolver processes and their warden have of it: sockets for questions, to be woken, for
    answers, and the bell."""

    def __init__(self, worker: int, trouble: Callable[[], str] = str) -> None:
        kind = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine, self.questions = socket.socketpair(*kind)
        waker, self.waker = socket.socketpair()
        answers, self.answers = socket.socketpair(*kind)
        bell, self.bell = socket.socketpair(*kind)
        self.sockets = [
            mine,
            self.questions,
            waker,
            self.waker,
            answers,
            self.answers,
            bell,
            self.bell,
        ]
        for one in self.sockets:
            one.setblocking(False)
        self.desk = Desk(worker, mine, waker, answers, bell, trouble)

    def take(self) -> list[Question]:
        """Take what has been asked."""
        taken = []
        while True:
            try:
                taken.append(Question(*asked(self.questions.recv(512))))
            except BlockingIOError:
                return taken
