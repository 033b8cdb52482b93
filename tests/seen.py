"""A proxy to be shown, in the test's own process."""

from sniproxy.dataplane.counts import ACCEPTED, CONNECTIONS, FAULTS, UP, Counts
from sniproxy.status.overview import About, Answered, Ask, Process, Refresh, Steps


class Shown:
    """Two workers, one of which does not answer, and one that has died."""

    about = About("1.2.3", "plain", ["[::]:443"], isolate=False, started=1000.5)
    restarts = 1

    def __init__(self) -> None:
        self.parts = [Counts() for _ in range(3)]
        for place, part in enumerate(self.parts):
            part.numbers[ACCEPTED] = 10
            row = part.host("a.example", "a.example")
            row[CONNECTIONS], row[UP] = 4, 100
            part.host(f"{place}.example", "")[FAULTS] = 1
            part.reasons.row("no_such_host")[0] = 2
        self.parts[0].arrived(0.0, 0.2, 0.3)

    def processes(self) -> list[Process]:
        numbers = [part.numbers.tolist() for part in self.parts]
        return [Process(0, 7, numbers[0], answered=True), Process(1, 8, numbers[1], answered=False)]

    def lines_lost(self) -> int:
        return 5


def whole(steps: Steps, pages: "dict[tuple[int, int], Answered | None] | None" = None) -> bytes:
    """Take all steps; ``pages`` are what workers answer, by their number and first descriptor."""
    data, answered, refreshed = b"", None, 0
    while True:
        try:
            step = steps.send(answered)
        except StopIteration:
            assert refreshed == 1
            return data
        answered = None
        if isinstance(step, bytes):
            data += step
        elif isinstance(step, Ask):
            answered = (pages or {})[step.worker, step.first]
        else:
            assert isinstance(step, Refresh)
            refreshed += 1
