"""A desk to ask at, whose other side the test takes."""

import socket
from collections.abc import Callable
from typing import NamedTuple

from sniproxy.dataplane.asking import Desk
from sniproxy.resolver.answer import LONGEST, NOBODY, Answer, answer, answers, asked


class Question(NamedTuple):
    """What ``question`` was given, and by which worker."""

    number: int
    worker: int
    validates: int
    host: str
    owner: int = NOBODY


class Counter:
    """What resolver processes and their warden have of it: sockets for questions, for answers, and
    the bell."""

    def __init__(self, worker: int, trouble: Callable[[], str] = str) -> None:
        kind = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine, self.questions = socket.socketpair(*kind)
        answers, self.answers = socket.socketpair(*kind)
        bell, self.bell = socket.socketpair(*kind)
        self.sockets = [mine, self.questions, answers, self.answers, bell, self.bell]
        for one in self.sockets:
            one.setblocking(False)
        self.desk = Desk(worker, mine, answers, bell, trouble)
        self.messages: dict[int, list[Question]] = {}

    def take(self) -> list[Question]:
        """Take what has been asked."""
        taken: list[Question] = []
        while True:
            try:
                sent, worker, questions = asked(self.questions.recv(LONGEST))
            except BlockingIOError:
                return taken
            self.messages[sent] = [
                Question(number, worker, validates, host, owner)
                for (number, owner, validates), host in questions
            ]
            taken += self.messages[sent]

    def message(self, number: int) -> int:
        """Give the number of the last message in which a question was, which is one of its own if
        it was in none."""
        for sent, questions in reversed(self.messages.items()):
            if number in [one.number for one in questions]:
                return sent
        return number

    def tell_nothing(self, number: int) -> None:
        """Say of a question's message that nobody has looked into any of it."""
        self.answers.send(answers(self.message(number), []))

    def tell(self, said: dict[int, Answer], *files: socket.SocketType, more: bool = False) -> None:
        """Answer some questions of a message."""
        (sent,) = {self.message(number) for number in said}
        some = [answer(number, one) for number, one in said.items()]
        message = answers(sent, some, more=more)
        socket.send_fds(self.answers, [message], [one.fileno() for one in files])
