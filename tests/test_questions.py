"""What the supervisor makes of several workers' reports."""

from sniproxy.process.questions import Question, sum_of


def test_numbers_are_added_and_words_stand() -> None:
    total: dict[str, int | str] = {"reason": "SIGHUP"}
    total = sum_of(total, {"reason": "SIGHUP", "open": 2})
    total = sum_of(total, {"reason": "SIGHUP", "open": 3, "more": 1})
    assert total == {"reason": "SIGHUP", "open": 5, "more": 1}


def test_who_has_not_answered_is_awaited_no_more() -> None:
    question = Question({0, 1})
    question.awaited.discard(0)
    question.expire()
    assert (question.awaited, question.answered) == (set(), False)
    question = Question(set())
    question.expire()
    assert question.answered
