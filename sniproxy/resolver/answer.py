"""Questions to a resolver process and its answers, as messages between processes of this program.

A question is: where is the backend of this host? An answer that has found one comes with the
connected socket. Both ends are the same build, but nothing of an answer is believed beyond its
form: who gets one that it has not asked for drops it.
"""

import enum
import struct
from typing import NamedTuple

UNSURE = 2
"""In place of whether a hello validates its host: it is cut behind the name."""

_QUESTION = struct.Struct("=QHB")
_HOST = slice(_QUESTION.size, None)
HEAD = struct.Struct("=QBBBiI")
"""What an answer begins with: the number of the question, outcome, version, alert, errno, owner.
Nothing more is the usual answer: the host's own entry serves it, by its first socket."""

OWNER = struct.Struct("=I")
"""A message to the warden: whose entries nobody is to go into for a minute."""

LONGEST = 512
"""Bytes of a message: a name has 254, twice in no answer."""


class Outcome(enum.IntEnum):
    """What became of a question."""

    REACHED = 0
    REFUSED = 1
    MAY_PASS = 2
    """Refused, but who has time may ask again."""
    WHOLE = 3
    """The rest of the hello decides: it is to be read first."""
    AGAIN = 4
    """Nobody has looked: the process that was to has ended."""


class Answer(NamedTuple):
    """``line`` is where to wait for that backend: the entry that serves the host, and which of its
    sockets; empty in the usual answer (``HEAD``). ``version`` is of the PROXY header that it wants;
    ``alert`` and ``reason`` are those of a refusal, ``error`` is the errno behind it, ``owner`` the
    uid that it is about."""

    outcome: int
    line: str
    version: int = 0
    alert: int = 0
    reason: str = ""
    error: int = 0
    owner: int = 0


def ask(number: int, worker: int, validates: int, host: str) -> bytes:
    """Write a question of process ``worker``; ``validates`` is 0, 1 or ``UNSURE``; no ``host`` is
    empty."""
    return _QUESTION.pack(number, worker, validates) + host.encode("ascii")


def asked(message: bytes) -> tuple[int, int, int, str]:
    """Read a question: what ``ask`` was given."""
    number, worker, validates = _QUESTION.unpack_from(message)
    return number, worker, validates, message[_HOST].decode("ascii")


def known(host: str, owner: int) -> str:
    """Write for a question that its host was reached before, and whose it was."""
    return f"{host} {owner}"


def knowing(message: bytes) -> tuple[bytes, int | None]:
    """Read that of a question; give the question without it."""
    if b" " not in message[_HOST]:
        return message, None
    question, _, owner = message.rpartition(b" ")
    return question, int(owner)


def answer(number: int, said: Answer, about: int = 0) -> bytes:
    """Write an answer to a question, ``about`` whom it is if it does not say so itself."""
    outcome, line, version, alert, reason, error, owner = said
    head = HEAD.pack(number, outcome, version, alert, error, owner or about)
    return head + (f"{line} {reason}" if reason else line).encode("ascii")


def answered(message: bytes) -> tuple[int, Answer]:
    """Read an answer, and to which question it is."""
    number, outcome, version, alert, error, owner = HEAD.unpack_from(message)
    line, _, reason = message[HEAD.size :].decode("ascii").partition(" ")
    return number, Answer(outcome, line, version, alert, reason, error, owner)
