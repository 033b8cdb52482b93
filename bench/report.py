"""The report: medians of all rounds, tables in Markdown, and the targets with what was reached.

Only this module knows which figure of a work is shown where and how; the targets are set here.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

from bench.candidates import (
    FLOOR,
    HAPROXY,
    NGINX,
    NGINX_TWO,
    OURS,
    OURS_ALL,
    OURS_SOURCE,
)

MISSING = "–"
THIN_SPACE = "\u202f"

Results = dict[str, dict[str, list[dict[str, Any]]]]
"""Work, candidate: the figures of each round."""


class Report(TypedDict):
    """What is saved as JSON."""

    machine: dict[str, str]
    results: Results


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One figure of one work. ``divisor`` makes the unit that the title names."""

    title: str
    work: str
    figure: str
    digits: int = 1
    divisor: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[Column, ...]


SHARING = {
    "light": "one at a time",
    "burst": "bursts of 200",
    "handed over": "one at a time after a hand-over",
}

TABLES = (
    Table(
        "One at a time, as where little is going on: connections, round trips of 100 bytes, rest",
        (
            Column("CPU µs a connection", "connection, one at a time", "cpu"),
            Column("of it user", "connection, one at a time", "user"),
            Column("p50 µs", "connection, one at a time", "p50", 0),
            Column("p99 µs", "connection, one at a time", "p99", 0),
            Column("CPU µs a round trip", "round trip, one client", "cpu", 2),
            Column("of it user", "round trip, one client", "user", 2),
            Column("p50 µs", "round trip, one client", "p50", 0),
            Column("p99 µs", "round trip, one client", "p99", 0),
            Column("wake-ups/s with 1 000 idle connections", "idle", "wake-ups", 2),
            Column("CPU µs/s", "idle", "cpu", 0),
        ),
    ),
    Table(
        "Connections: hello, 100 bytes back, close; 64 at a time",
        (
            Column("CPU µs", "connection", "cpu"),
            Column("of it user", "connection", "user"),
            Column("CPU µs, 1.8 kB hello", "connection, 1.8 kB hello", "cpu"),
            Column("connections/s", "connection", "rate", 0),
            Column("p50 µs", "connection", "p50", 0),
            Column("p99 µs", "connection", "p99", 0),
            Column("system calls, one at a time", "system calls", "alone", 2),
            Column("64 at a time", "system calls", "together", 2),
            Column("isolated look-ups, CPU µs more", "isolated look-ups", "more"),
            Column("CPU µs of load and backend", "connection", "load"),
        ),
    ),
    Table(
        "Bulk: replies of 200 kB, 16 at a time; two streams of 300 MB each way",
        (
            Column("CPU µs a reply", "reply of 200 kB", "cpu"),
            Column("down: CPU s/GB", "download", "cpu", 3),
            Column("GB/s", "download", "rate", 2),
            Column("system calls/MB", "system calls", "down"),
            Column("in TLS records: CPU s/GB", "download in TLS records", "cpu", 3),
            Column("up: CPU s/GB", "upload", "cpu", 3),
            Column("GB/s", "upload", "rate", 2),
            Column("system calls/MB", "system calls", "up"),
            Column("in TLS records: CPU s/GB", "upload in TLS records", "cpu", 3),
            Column("CPU s/GB of load and backend, down", "download", "load", 3),
        ),
    ),
    Table(
        "Round trips of 100 bytes on 64 connections, and one neighbour's beside a bulk stream",
        (
            Column("CPU µs", "round trip", "cpu", 2),
            Column("of it user", "round trip", "user", 2),
            Column("round trips/s", "round trip", "rate", 0),
            Column("p50 µs", "round trip", "p50", 0),
            Column("p99 µs", "round trip", "p99", 0),
            Column("CPU µs of load and backend", "round trip", "load", 2),
            Column("neighbour p99 µs, stream down", "neighbour", "down, p99", 0),
            Column("stream up", "neighbour", "up, p99", 0),
        ),
    ),
    Table(
        "Memory of the process, and 20 000 connections held",
        (
            Column("at rest MB", "memory", "rest", 1, 1e6),
            Column("a worker more MB", "worker", "worker", 1, 1e6),
            Column("bytes an idle connection", "memory", "idle", 0),
            Column("bytes a held one", "accept with held", "bytes", 0),
            Column("CPU µs a connection, none held", "accept with held", "alone"),
            Column("many held", "accept with held", "among"),
        ),
    ),
    Table(
        "Workers: how many times the connections of the idlest one the busiest has got",
        (
            Column("as many as CPUs, 64 clients", "spread", "spread", 2),
            *(
                Column(f"{workers} workers, {title}", "sharing", f"{workers}, {figure}", 2)
                for figure, title in SHARING.items()
                for workers in (2, 4, 8)
            ),
        ),
    ),
)


def median(report: Report, work: str, candidate: str, figure: str) -> float | None:
    """Give the median of all rounds; None where it was not measured."""
    rounds = report["results"].get(work, {}).get(candidate, [])
    values = [one[figure] for one in rounds if figure in one]
    return statistics.median(values) if values else None


def candidates(report: Report) -> list[str]:
    """Name all candidates, ours first, in the order in which they were measured."""
    names = {name: None for work in report["results"].values() for name in work}
    first = [name for name in (FLOOR, OURS, OURS_SOURCE, OURS_ALL) if name in names]
    return first + [name for name in names if name not in first]


def _cell(report: Report, column: Column, candidate: str) -> str:
    value = median(report, column.work, candidate, column.figure)
    if value is None:
        return MISSING
    return f"{value / column.divisor:,.{column.digits}f}".replace(",", THIN_SPACE)


def _table(report: Report, table: Table) -> Iterator[str]:
    """Write a table, without the candidates and the columns that were not measured."""
    names = candidates(report)
    cells = {c: [_cell(report, c, name) for name in names] for c in table.columns}
    cells = {column: values for column, values in cells.items() if set(values) != {MISSING}}
    if not cells:
        return
    yield f"**{table.title}**"
    yield ""
    yield "| | " + " | ".join(column.title for column in cells) + " |"
    yield "|---|" + "--:|" * len(cells)
    for name, row in zip(names, zip(*cells.values(), strict=True), strict=True):
        if set(row) != {MISSING}:
            yield f"| {name} | " + " | ".join(row) + " |"
    yield ""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What must be reached: a figure of ours, at most ``most`` times another candidate's, or at
    most ``most`` itself where no ``other`` is named. ``intel`` is what it is instead on processors
    of that kind, whose system calls are cheap."""

    text: str
    work: str
    figure: str
    most: float
    other: str = ""
    who: str = OURS
    divisor: float = 1.0
    unit: str = ""
    intel: float | None = None

    def limit(self, report: Report) -> float:
        return self.most if self.intel is None or kind(report) != INTEL else self.intel


INTEL = "Intel"


def kind(report: Report) -> str:
    """Name the kind of processor that a run was on, by its maker."""
    cpu = report["machine"].get("cpu", "")
    return next((name for name in (INTEL, "AMD") if name in cpu), "another")


TARGETS = (
    Target(
        "one at a time: CPU per connection, of nginx's",
        "connection, one at a time",
        "cpu",
        1.40,
        NGINX,
    ),
    Target(
        "one at a time: CPU per connection, of the floor's",
        "connection, one at a time",
        "cpu",
        1.70,
        FLOOR,
    ),
    Target(
        "one client: CPU per round trip, of nginx's", "round trip, one client", "cpu", 1.00, NGINX
    ),
    Target(
        "one client: p50 of round trips, of nginx's", "round trip, one client", "p50", 1.00, NGINX
    ),
    Target("wake-ups a second at rest", "idle", "wake-ups", 0),
    Target("CPU per connection, of nginx's", "connection", "cpu", 1.12, NGINX, intel=1.22),
    Target("CPU per round trip, of nginx's", "round trip", "cpu", 1.10, NGINX),
    Target(
        "CPU per reply of 200 kB, of nginx's", "reply of 200 kB", "cpu", 0.90, NGINX, intel=1.05
    ),
    Target("CPU per GB down, of nginx's", "download", "cpu", 0.65, NGINX, intel=0.90),
    Target("CPU per GB down, of the floor's", "download", "cpu", 1.05, FLOOR),
    Target("CPU per GB up, of nginx's", "upload", "cpu", 0.28, NGINX),
    Target("CPU per GB up, of HAProxy's", "upload", "cpu", 0.30, HAPROXY),
    Target(
        "all workers: CPU per connection, of one worker's",
        "connection",
        "cpu",
        1.15,
        OURS,
        OURS_ALL,
    ),
    Target(
        "all workers: p99 of round trips, of nginx's with 2",
        "round trip",
        "p99",
        1.00,
        NGINX_TWO,
        OURS_ALL,
    ),
    Target("busiest worker, of the idlest: 64 clients", "spread", "spread", 1.5, who=OURS_ALL),
    *(
        Target(f"2, 4 or 8 workers, {title}", "sharing", figure, 1.5, who=OURS_ALL)
        for figure, title in SHARING.items()
    ),
    Target("a PROXY header more, CPU", "PROXY header", "more", 6, unit=" µs"),
    Target("isolated look-ups, CPU more", "isolated look-ups", "more", 30, unit=" µs"),
    Target(
        "all workers: isolated look-ups, CPU more",
        "isolated look-ups",
        "more",
        30,
        who=OURS_ALL,
        unit=" µs",
    ),
    Target("bytes an idle connection", "memory", "idle", 600, unit=" B"),
    Target("connection with 20 000 held, of one with none", "accept with held", "ratio", 1.05),
    Target("memory at rest", "memory", "rest", 16, divisor=1e6, unit=" MB"),
    Target("a worker more", "worker", "worker", 6, who=OURS_ALL, divisor=1e6, unit=" MB"),
    Target("neighbour's p99, stream down", "neighbour", "down, p99", 2, divisor=1e3, unit=" ms"),
    Target("neighbour's p99, stream up", "neighbour", "up, p99", 2, divisor=1e3, unit=" ms"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """A target with what was measured: a ratio, or the figure in its unit."""

    target: Target
    value: float
    most: float

    @property
    def reached(self) -> bool:
        return self.value <= self.most

    def __str__(self) -> str:
        unit = self.target.unit
        digits = 0 if unit == " B" else 2
        limit = f"{self.most:g}{unit}" if unit else f"{self.most:.2f}"
        value = f"{self.value:.{digits}f}{unit}"
        return f"{value if self.reached else f'**{value}**'} of {limit}"


def verdicts(report: Report) -> list[Verdict]:
    """Hold each target that was measured against its measurement."""
    executable = OURS in candidates(report)
    found = []
    for target in TARGETS:

        def of(name: str, target: Target = target) -> float | None:
            if name == OURS and not executable:
                name = OURS_SOURCE
            return median(report, target.work, name, target.figure)

        value = of(target.who)
        base = of(target.other) if target.other else target.divisor
        if value is not None and base:
            found.append(Verdict(target, value / base, target.limit(report)))
    return found


def targets(reports: Sequence[Report]) -> Iterator[str]:
    """Write what was reached of what must be, side by side; in bold what was not."""
    judged = [{one.target: one for one in verdicts(report)} for report in reports]
    if not any(judged):
        return
    yield "**Targets** (measured, of at most; what is missed is bold)"
    yield ""
    yield "| | " + " | ".join(kind(report) for report in reports) + " |"
    yield "|---|" + "--:|" * len(reports)
    for target in TARGETS:
        cells = [str(found.get(target, MISSING)) for found in judged]
        if set(cells) != {MISSING}:
            yield f"| {target.text} | " + " | ".join(cells) + " |"
    yield ""


def tables(report: Report) -> Iterator[str]:
    """Write where a run was, and its tables."""
    yield "; ".join(f"{name}: {value}" for name, value in report["machine"].items())
    yield ""
    for table in TABLES:
        yield from _table(report, table)


def markdown(report: Report) -> str:
    """Write all of one run."""
    return "\n".join([*targets([report]), *tables(report)])


def side_by_side(reports: Sequence[Report]) -> str:
    """Write all of the runs on several kinds of machine."""
    lines = [*targets(reports)]
    for report in reports:
        lines += [f"### {kind(report)}", "", *tables(report)]
    return "\n".join(lines)
