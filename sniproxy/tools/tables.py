"""The tables: what a person is shown of a statement.

All text of the other end becomes printable ASCII here, before its width is measured. Columns are as
wide as what is in them; where the terminal is narrower, those of text give way first.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sniproxy.tools.statement import Document

_GAP = "  "
_NARROWEST = 12
"""Characters that a column of text keeps in a narrow terminal."""

_WIDEST = 64
"""Characters of a column where nothing is cut: longer cells stand out of it."""

_CUT = "…"
_UNKNOWN = "-"

Row = Mapping[str, Any]


def harmless(text: str) -> str:
    """Write a text in printable ASCII: it can neither command a terminal nor turn its direction."""
    return text.encode("unicode_escape").decode("ascii")


def amount(number: float) -> str:
    """Write so many bytes with a unit: three digits and a half at most."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if number < 999.5 or unit == "EiB":
            break
        number /= 1024
    return f"{number:.{0 if unit == 'B' or number >= 99.95 else 1}f} {unit}"


def duration(seconds: float) -> str:
    """Write a time by its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours = minutes // 60
    if not hours:
        return f"{minutes}m {rest:02}s"
    return f"{hours}h {minutes % 60:02}m" if hours < 24 else f"{hours // 24}d {hours % 24:02}h"


def _count(number: float) -> str:
    return str(int(number))


def _frequency(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:.0f}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: the key that sorts by it, its head, the field, and how that is written."""

    key: str
    title: str
    field: str
    write: Callable[[Any], str]

    @property
    def is_text(self) -> bool:
        return self.write is harmless

    def cell(self, row: Row) -> str:
        value = row.get(self.field)
        return _UNKNOWN if value is None or value == "" else self.write(value)

    def first(self, rows: Iterable[Row], most: int | None, *, reverse: bool = False) -> list[Row]:
        """Give the first ``most`` rows by this column, all for None: texts from a on, numbers from
        the largest on, what is unknown behind them."""

        def key(row: Row) -> Any:
            value = row.get(self.field)
            return value if self.is_text else (value is not None, value or 0)

        backwards = reverse != (not self.is_text)
        if most is None:
            return sorted(rows, key=key, reverse=backwards)
        return (heapq.nlargest if backwards else heapq.nsmallest)(most, rows, key)


_BYTES = (Column("u", "up", "bytes_up", amount), Column("d", "down", "bytes_down", amount))

BY_OPEN = Column("o", "open", "open", _count)
BY_AGE = Column("t", "age", "age", duration)

_RATES = (
    Column("A", "new/s", "connections_rate", _frequency),
    Column("U", "up/s", "bytes_up_rate", amount),
    Column("D", "down/s", "bytes_down_rate", amount),
)
"""What is known of hosts from two statements only."""

HOSTS = (
    Column("n", "host", "host", harmless),
    BY_OPEN,
    Column("a", "accepted", "connections", _count),
    *_BYTES,
    Column("f", "faults", "backend_faults", _count),
)
HOSTS_WATCHED = (*HOSTS[:3], *_RATES, *HOSTS[3:])

CONNECTIONS = (
    Column("l", "client", "client", harmless),
    Column("n", "host", "host", harmless),
    Column("s", "state", "state", harmless),
    Column("w", "worker", "worker", _count),
    BY_AGE,
    Column("i", "idle", "idle", duration),
    *_BYTES,
)


class Table:
    """Columns as wide as these rows need them; further rows may stand out where nothing is cut.

    ``width`` is that of the terminal, None for as much as it takes.
    """

    def __init__(self, columns: Sequence[Column], rows: Iterable[Row], width: int | None) -> None:
        self._columns = columns
        self._width = width
        self._widths = [len(column.title) for column in columns]
        for row in rows:
            cells = (len(column.cell(row)) for column in columns)
            self._widths = list(map(max, self._widths, cells))
        most = _WIDEST if width is None else width
        self._widths = [min(one, most) for one in self._widths]
        if width is not None:
            self._narrow(sum(self._widths) + len(_GAP) * (len(columns) - 1) - width)

    def _narrow(self, excess: int) -> None:
        texts = [index for index, column in enumerate(self._columns) if column.is_text]
        while excess > 0:
            widest = max(texts, key=self._widths.__getitem__)
            if self._widths[widest] <= _NARROWEST:
                return  # the lines are cut
            self._widths[widest] -= 1
            excess -= 1

    @property
    def head(self) -> str:
        return self._line([column.title for column in self._columns])

    def line(self, row: Row) -> str:
        return self._line([column.cell(row) for column in self._columns])

    def _line(self, cells: Sequence[str]) -> str:
        parts = []
        for column, cell, width in zip(self._columns, cells, self._widths, strict=True):
            text = cell if self._width is None else cut(cell, width)
            parts.append(text.ljust(width) if column.is_text else text.rjust(width))
        return cut(_GAP.join(parts).rstrip(), self._width)


def cut(text: str, width: int | None) -> str:
    """Shorten a text to so many columns."""
    if width is None or len(text) <= width:
        return text
    return text[: width - 1] + _CUT if width else ""


def host_rows(now: Document, before: Document | None) -> list[Row]:
    """List the hosts by name, with their rates if there is a statement from ``before``."""
    hosts = sorted(now["hosts"], key=lambda host: str(host["host"]))
    if before is None or before["time"] >= now["time"]:
        return hosts
    earlier = {host["host"]: host for host in before["hosts"]}
    seconds = now["time"] - before["time"]
    for host in hosts:
        for field in ("connections", "bytes_up", "bytes_down"):
            grown = host[field] - earlier.get(host["host"], {field: 0})[field]
            # A count that has gone back was begun anew.
            host[f"{field}_rate"] = grown / seconds if grown >= 0 else None
    return hosts


def totals(now: Document, before: Document | None) -> list[str]:
    """Write what stands above a table, with rates if there is a statement from ``before``."""
    build, counts, reasons = now["build"], now["connections"], now["connections"]["refused"]
    seconds = now["time"] - before["time"] if before else 0
    new, up, down = "", "", ""
    if before and seconds > 0:
        grown = [counts["accepted"] - before["connections"]["accepted"]]
        grown += [now[field] - before[field] for field in ("bytes_up", "bytes_down")]
        if min(grown) >= 0:
            new = f" ({_frequency(grown[0] / seconds)}/s)"
            up, down = (f" ({amount(one / seconds)}/s)" for one in grown[1:])
    refused = ", ".join(
        f"{harmless(reason)} {_count(number)}"
        for reason, number in sorted(reasons.items(), key=lambda item: -item[1])
    )
    workers = "; ".join(
        f"{_count(one['number'])} has {_count(one['open'])} open, {_count(one['descriptors'])} of "
        f"{_count(one['descriptors_max'])} descriptors{'' if one['answered'] else ', silent'}"
        for one in now["workers"]
    )
    where = " ".join(map(harmless, now["listen"])) or _UNKNOWN
    version = f"{harmless(build['version'])} ({harmless(build['flavour'])})"
    life = duration(max(now["time"] - now["started"], 0))
    hello, backend = _mean(now["hello_seconds"]), _mean(now["backend_seconds"])
    traffic = f"{amount(now['bytes_up'])} up{up}, {amount(now['bytes_down'])} down{down}"
    accepted, adopted = _count(counts["accepted"]), _count(counts["adopted"])
    dropped, restarts = _count(now["log_lines_dropped"]), _count(now["worker_restarts"])
    return [
        f"sniproxy {version} on {where}, running for {life}",
        f"{_count(counts['open'])} open, {accepted} accepted{new}, {adopted} adopted; {traffic}",
        f"on average {hello} to a hello, {backend} to its backend; {dropped} log lines dropped",
        f"{_count(sum(reasons.values()))} refused{refused and ': '}{refused}",
        f"workers ({restarts} restarts): {workers or _UNKNOWN}",
    ]


def _mean(times: Row) -> str:
    return f"{times['sum'] / times['count'] * 1000:.1f} ms" if times["count"] else _UNKNOWN
