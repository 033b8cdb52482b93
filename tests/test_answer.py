"""Questions to resolver processes, and answers."""

import pytest

from sniproxy.resolver.answer import (
    LONGEST,
    UNSURE,
    Answer,
    Outcome,
    answer,
    answered,
    ask,
    asked,
    knowing,
    known,
)
from sniproxy.resolver.naming import ACME_SOCKET

LONG = "a" * 254


@pytest.mark.parametrize("host", ["", "a.example", LONG])
def test_a_question_is_read_as_it_was_written(host: str) -> None:
    question = 2**64 - 1, 1023, UNSURE, host
    assert asked(ask(*question)) == question
    assert len(ask(*question)) <= LONGEST


@pytest.mark.parametrize("owner", [0, 2**32 - 1])
def test_a_question_may_say_whose_its_host_was(owner: int) -> None:
    """Whatever the number before the name is made of."""
    question = int.from_bytes(b" " * 8), 0x2020, UNSURE
    message, said = ask(*question, LONG), ask(*question, known(LONG, owner))
    assert knowing(message) == (message, None)
    assert knowing(said) == (message, owner)
    assert len(said) <= LONGEST


@pytest.mark.parametrize(
    "said",
    [
        Answer(Outcome.REACHED, "_.example", 2),
        Answer(Outcome.REACHED, "", 1),
        Answer(Outcome.REFUSED, "a.example", 0, 112, "no_such_host", 2),
        Answer(Outcome.MAY_PASS, "", 0, 80, "owner_hangs", 0, 2**32 - 1),
        Answer(Outcome.REFUSED, f"{LONG}/{ACME_SOCKET}", 0, 80, "backend_fault", 11),
    ],
)
def test_an_answer_is_read_as_it_was_written(said: Answer) -> None:
    message = answer(7 << 32, said)
    assert answered(message) == (7 << 32, said)
    assert len(message) <= LONGEST
