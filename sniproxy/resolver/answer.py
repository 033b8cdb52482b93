"""Questions to a resolver process and its answers, as messages between processes of this program.

A question is: where is the backend of this host? An answer that has found one comes with the
connected socket, in the order of the answers. Questions travel together, and so do their answers,
unless one takes long. What the last message with answers leaves out of the one with the questions
nobody has looked into, and it is to be asked once more. Both ends are the same build, but nothing
of an answer is believed beyond its form: who gets one that it has not asked for drops it.
"""

import enum
import struct
from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

UNSURE = 2
"""In place of whether a hello validates its host: it is cut behind the name."""

NOBODY = -1
"""In place of whose an entry was when it was reached before."""

_QUESTIONS = struct.Struct("=QHH")
"""What a message with questions begins with: its number, the worker, how many there are."""
_QUESTION = struct.Struct("=QqB")
"""All of a question but the host, which follow all of them."""

_ANSWERS = struct.Struct("=QHB")
"""What a message with answers begins with: the number of the one with the questions, how many there
are, and whether more come."""
_ANSWER = struct.Struct("=QBBBHiI")
"""All of an answer but its text: the number of the question, outcome, version, alert, how long the
text is, errno, owner. The texts follow all of them; the usual answer has none."""

OWNER = struct.Struct("=I")
"""A message to the warden: whose entries nobody is to go into for a minute."""

TOGETHER = 16
"""Questions of a message at most."""

_LONGEST_TEXT = 576
"""Bytes of an answer's: a name has 254, twice in none."""

BEGINNING = _ANSWERS.size
LONGEST = _ANSWERS.size + TOGETHER * (_ANSWER.size + _LONGEST_TEXT)
"""Bytes of a message, with questions or answers."""


class Outcome(enum.IntEnum):
    """What became of a question."""

    REACHED = 0
    REFUSED = 1
    MAY_PASS = 2
    """Refused, but who has time may ask again."""
    WHOLE = 3
    """The rest of the hello decides: it is to be read first."""
    AGAIN = 4
    """Who was looking has ended, maybe of that."""


Question = tuple[tuple[int, int, int], str]
"""Its number; the uid of whose the host's entry was when it was reached before, if that is said, or
``NOBODY``; 0, 1 or ``UNSURE``: whether the hello validates it. And the host, empty where there is
none."""


class Answer(NamedTuple):
    """``line`` is where to wait for that backend: the entry that serves the host, and which of its
    sockets; empty in the usual answer, where the host's own entry serves it by its first socket.
    ``version`` is of the PROXY header that it wants; ``alert`` and ``reason`` are those of a
    refusal, ``error`` is the errno behind it, ``owner`` the uid that it is about."""

    outcome: int
    line: str
    version: int = 0
    alert: int = 0
    reason: str = ""
    error: int = 0
    owner: int = 0


def ask(number: int, worker: int, questions: Sequence[Question]) -> bytes:
    """Write a message of process ``worker``, with at most ``TOGETHER`` questions."""
    heads, hosts = zip(*questions, strict=True)
    first = _QUESTIONS.pack(number, worker, len(heads))
    return first + b"".join(starmap(_QUESTION.pack, heads)) + "\n".join(hosts).encode("ascii")


def asked(message: bytes) -> tuple[int, int, Iterator[Question]]:
    """Read a message with questions: its number, the worker, and the questions."""
    number, worker, count = _QUESTIONS.unpack_from(message)
    hosts = _QUESTIONS.size + count * _QUESTION.size
    heads = _QUESTION.iter_unpack(message[_QUESTIONS.size : hosts])
    return number, worker, zip(heads, message[hosts:].decode("ascii").split("\n"), strict=True)


def answer(number: int, said: Answer, about: int = 0) -> tuple[bytes, str]:
    """Write an answer to a question, ``about`` whom it is if it does not say so itself: what comes
    before the text, and that."""
    outcome, line, version, alert, reason, error, owner = said
    text = f"{line} {reason}" if reason else line
    return _ANSWER.pack(number, outcome, version, alert, len(text), error, owner or about), text


def answers(number: int, some: Sequence[tuple[bytes, str]], *, more: bool = False) -> bytes:
    """Write a message with answers to questions of a message of that number; ``more``: another
    one is to come."""
    first = _ANSWERS.pack(number, len(some), more)
    if not some:
        return first
    heads, texts = zip(*some, strict=True)
    return first + b"".join(heads) + "".join(texts).encode("ascii")


def answered(message: bytes) -> tuple[int, bool, Iterator[tuple[int, ...]], str]:
    """Read a message with answers: which it answers, whether more come, of each answer what comes
    before its text, and all texts."""
    number, count, more = _ANSWERS.unpack_from(message)
    texts = _ANSWERS.size + count * _ANSWER.size
    heads = _ANSWER.iter_unpack(message[_ANSWERS.size : texts])
    return number, bool(more), heads, message[texts:].decode("ascii")


def as_answer(head: tuple[int, ...], text: str) -> Answer:
    """Read an answer from what comes before its text, and that."""
    _, outcome, version, alert, _, error, owner = head
    line, _, reason = text.partition(" ")
    return Answer(outcome, line, version, alert, reason, error, owner)


def number_of(message: bytes) -> int:
    """Read which message a message answers, of its first ``BEGINNING`` bytes."""
    number: int = _ANSWERS.unpack(message)[0]
    return number
