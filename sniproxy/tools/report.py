"""The report of sniproxy-check: what is found of each entry, for people and for programs.

Each entry is written as soon as it has been looked at, so that what comes later can't take it away.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator

from sniproxy.tools.entries import Kind
from sniproxy.tools.output import shown

_WIDEST = 48
"""Columns that the table gives to names; longer ones stand out of it."""

_LONGEST = 200
"""Characters of a path in a sentence."""

_SERVES = {
    Kind.WILDCARD: "serves *.{}",
    Kind.DEFAULT: "serves every other name",
    Kind.NO_SERVER_NAME: "serves clients without a server name",
}


@dataclasses.dataclass(slots=True)
class Finding:
    """What is known of one entry. ``problems`` make it not well, ``notes`` do not."""

    name: str
    is_host: bool = True
    kind: Kind | None = None
    asked_for: bool = False
    shadows: str | None = None
    shadowed_by: list[str] = dataclasses.field(default_factory=list)
    accepts: bool = False
    backend_user: str | None = None
    backend_pid: int | None = None
    proxy_header: str = "none"
    acme_socket: bool = False
    waits_for_backend: bool = False
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def brief(path: str) -> str:
    """Show a path; of a very long one, its ends."""
    if len(path) > _LONGEST:
        path = f"{path[: _LONGEST // 2]}…{path[-_LONGEST // 2 :]}"
    return shown(path)


def table(results: Iterable[Finding], names: Iterable[str], root: str) -> Iterator[str]:
    """Write a line for each, and one for all; ``names`` are those that will come.

    ``root`` is the root directory below which was looked.
    """
    width = min(max((len(shown(name)) for name in names), default=0), _WIDEST)
    hosts = well = 0
    for result in results:
        state = "FAIL" if result.problems else "ok  " if result.is_host else "note"
        hosts += result.is_host
        well += result.is_host and not result.problems
        words = []
        if result.accepts:
            who = result.backend_user or "a busy backend"
            words.append(f"accepts as {who}, PROXY header {result.proxy_header}")
        if result.kind in _SERVES and not result.problems:
            words.append(_SERVES[result.kind].format(result.name.partition(".")[2]))
        words += result.problems
        words += [f"note: {note}" if result.is_host else note for note in result.notes]
        yield f"{state} {shown(result.name):{width}}  {'; '.join(words)}\n"
    inside = f", seen inside {brief(root)}" if root != "/" else ""
    yield f"{hosts} hosts, {well} well, {hosts - well} not{inside}\n"


def as_json(results: Iterable[Finding]) -> Iterator[str]:
    """Write what programs read: names as in the table, since JSON has no bytes."""
    before = "["
    for result in results:
        yield before + json.dumps(dataclasses.asdict(result) | {"name": shown(result.name)})
        before = ",\n"
    yield "[]\n" if before == "[" else "]\n"
