"""Questions to resolver processes, and answers."""

import pytest

from sniproxy.resolver.answer import (
    BEGINNING,
    LONGEST,
    NOBODY,
    TOGETHER,
    UNSURE,
    Answer,
    Outcome,
    Question,
    answer,
    answered,
    answers,
    as_answer,
    ask,
    asked,
    number_of,
)
from sniproxy.resolver.naming import ACME_SOCKET

LONG = "a" * 254


@pytest.mark.parametrize("owner", [NOBODY, 0, 2**32 - 1])
@pytest.mark.parametrize("hosts", [[""], ["a.example", "", LONG], [LONG] * TOGETHER])
def test_questions_are_read_as_they_were_written(hosts: list[str], owner: int) -> None:
    questions: list[Question] = [
        ((2**64 - 1 - at, owner, at % (UNSURE + 1)), host) for at, host in enumerate(hosts)
    ]
    message = ask(2**64 - 1, 1023, questions)
    number, worker, read = asked(message)
    assert (number, worker, [*read]) == (2**64 - 1, 1023, questions)
    assert len(message) <= LONGEST


SAID = [
    Answer(Outcome.REACHED, "_.example", 2),
    Answer(Outcome.REACHED, "", 1),
    Answer(Outcome.REFUSED, "a.example", 0, 112, "no_such_host", 2),
    Answer(Outcome.MAY_PASS, "", 0, 80, "owner_hangs", 0, 2**32 - 1),
    Answer(Outcome.REFUSED, f"{LONG}/{ACME_SOCKET}", 0, 80, "backend_fault", 11),
]


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("written", [[], *[[one] for one in SAID], SAID, [SAID[-1]] * TOGETHER])
def test_answers_are_read_as_they_were_written(written: list[Answer], more: bool) -> None:
    message = answers(7 << 32, [answer(at, one, 5) for at, one in enumerate(written)], more=more)
    number, to_come, heads, texts = answered(message)
    assert (number, to_come) == (7 << 32, more)
    assert number_of(message[:BEGINNING]) == number
    read = []
    for head in heads:
        assert head[0] == len(read)
        read.append(as_answer(head, texts[: head[4]]))
        texts = texts[head[4] :]
    assert not texts
    assert read == [one if one.owner else one._replace(owner=5) for one in written]
    assert len(message) <= LONGEST
