"""Refusals of a minute: how many there were, by reason and, of those most refused, by host name.

Clients make names up, so names are counted in tables of few rows (Misra and Gries, "Finding
repeated elements", 1982): where none is free, each loses one. So a name has at most what it was
refused, and a 101st of all refusals of its table less at most; whoever is refused more often than
that is there, whatever else is asked for. A host that has an entry is in another table than what
nobody has: who asks for any number of names does not hide that a backend is gone.

Processes add their counts up, field by field: of each table as many names are kept again.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from sniproxy.resolver.hosts import BACKEND_DOWN

MOST_NAMES: Final = 100
"""Names in a table: with names of the greatest length those of two tables are 54 kB, and fit in a
message between processes."""

SHOWN: Final = 3
"""Names in a line."""

_OF_A_HOST: Final = BACKEND_DOWN | {
    "backend_fault",
    "link_loop",
    "loop",
    "owner_barred",
    "owner_hangs",
    "owner_slow",
    "queue_full",
}
"""Reasons that only somebody who has an entry for a name can bring about."""

_HOST: Final = "host:"
_NAME: Final = "name:"
_TABLES: Final = (_HOST, _NAME)
"""What the fields of each table begin with. No reason has a colon."""


class Refusals:
    """Those since the last report."""

    __slots__ = ("_names", "_reasons")

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._names: dict[str, dict[str, int]] = {_HOST: {}, _NAME: {}}

    def count(self, reason: str, name: str) -> None:
        """Count one, of a host name or, where none was read, of an empty one."""
        self._reasons[reason] += 1
        if not name:
            return
        names = self._names[_HOST if reason in _OF_A_HOST else _NAME]
        if name in names:
            names[name] += 1
        elif len(names) < MOST_NAMES:
            names[name] = 1
        else:
            for other, count in list(names.items()):
                if count > 1:
                    names[other] = count - 1
                else:
                    del names[other]

    def fields(self) -> dict[str, int]:
        """Give the fields that tell of them; none where there were none."""
        reasons = self._reasons
        if not reasons:
            return {}
        fields = {"count": reasons.total(), **reasons}
        for table, names in self._names.items():
            fields |= {f"{table}{name}": count for name, count in names.items()}
        return fields

    def clear(self) -> None:
        """Begin anew."""
        self._reasons.clear()
        for names in self._names.values():
            names.clear()


def bounded(fields: "dict[str, int | str]") -> "dict[str, int | str]":
    """Leave of each table's names those that were refused most."""
    for table in _TABLES:
        names = _most(fields, (table,))
        for field in names[MOST_NAMES:]:
            del fields[field]
    return fields


def readable(fields: "Mapping[str, int | str]") -> "dict[str, int | str]":
    """Give the fields as a line of the log has them: of the names those most refused, as one."""
    names = _most(fields, _TABLES)[:SHOWN]
    line = {field: value for field, value in fields.items() if not field.startswith(_TABLES)}
    if names:
        line["names"] = ",".join(f"{field.partition(':')[2]}:{fields[field]}" for field in names)
    return line


def _most(fields: "Mapping[str, int | str]", tables: tuple[str, ...]) -> list[str]:
    """Give the fields of names, the greatest first, and of equal ones in the order of names."""
    names = [(-int(fields[one]), one) for one in fields if one.startswith(tables)]
    return [one for _, one in sorted(names)]
