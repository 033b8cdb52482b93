"""What the log is told of what can be seen."""

import pathlib
from collections.abc import Callable

from sniproxy.dataplane.counts import ACCEPTED
from sniproxy.log.log import Level, Log
from sniproxy.log.sinks import FileSink
from sniproxy.process.source import tell_totals
from sniproxy.status.overview import Answered, Ask
from tests.seen import Shown


class Looking(Shown):
    """Others have accepted more when they have looked."""

    def refresh(self, then: Callable[[], object]) -> None:
        self.parts[0].numbers[ACCEPTED] += 5
        then()

    def page(self, ask: Ask, then: Callable[[Answered | None], object]) -> None:
        raise NotImplementedError


def test_totals_are_told_whatever_the_level_once_all_have_looked(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        tell_totals(Looking(), Log(FileSink(file.fileno()), Level.ERROR))()
    assert (
        " event=totals open=0 accepted=35 refused=6 bytes_up=300 " in (tmp_path / "log").read_text()
    )
