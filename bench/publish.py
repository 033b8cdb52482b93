"""Put the results of a run into docs/: the figures, the picture, and the tables of the text. Those
of another kind of machine stay beside them.

python3 -m bench.publish [RESULTS.json]
"""

import json
import pathlib
import sys

from bench import picture, report
from bench.candidates import ROOT

DOCS = ROOT / "docs" / "explanation"
FIGURES = DOCS / "performance.json"
PICTURE = DOCS / "performance.svg"
TEXT = DOCS / "performance.md"
BEGIN = "<!-- tables: written by `make bench BENCH=--publish` -->\n"
END = "<!-- end of tables -->\n"


def with_tables(text: str, tables: str) -> str:
    """Put tables between the marks of a text."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        message = f"{TEXT} has no place for tables: expected {BEGIN!r} and {END!r}"
        raise ValueError(message)
    return f"{before}{begin}\n{tables}\n{end}{after}"


def published() -> list[report.Report]:
    """Read what is in docs/: one run for each kind of machine, the newest first."""
    kept: list[report.Report] = json.loads(FIGURES.read_text())
    return kept


def publish(results: report.Report) -> None:
    kept = [one for one in published() if report.kind(one) != report.kind(results)]
    everything = [results, *kept]
    FIGURES.write_text(json.dumps(everything, indent=1) + "\n")
    PICTURE.write_text(picture.draw(results))
    TEXT.write_text(with_tables(TEXT.read_text(), report.side_by_side(everything)))


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else ROOT / "bench" / "results" / "results.json"
    publish(json.loads(pathlib.Path(path).read_text()))
