"""Questions that several workers answer, to which there is one answer."""

from sniproxy.process.channel import Fields

ANSWER = 1.0
"""Seconds that a worker has to answer before one goes on without it."""


class Question:
    """An event that several workers report: what they said so far, and who is still awaited."""

    def __init__(self, awaited: set[int], fields: Fields | None = None) -> None:
        self.awaited = awaited
        self.fields = fields or {}
        self.answered = True
        """Whether all have, when it is concluded."""

    def expire(self) -> None:
        """Await nobody any more."""
        self.answered = not self.awaited
        self.awaited.clear()
