"""Who is still awaited."""

from sniproxy.process.questions import Question


def test_who_has_not_answered_is_awaited_no_more() -> None:
    question = Question({0, 1})
    question.awaited.discard(0)
    question.expire()
    assert (question.awaited, question.answered) == (set(), False)
    question = Question(set())
    question.expire()
    assert question.answered
