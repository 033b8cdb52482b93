"""The document: everything at once, as JSON (docs/reference/status.schema.json)."""

import re
from collections.abc import Generator, Iterable, Sequence

from sniproxy.dataplane.counts import (
    ACCEPTED,
    ADOPTED,
    BOUNDS,
    CONNECTIONS,
    DESCRIPTORS,
    DOWN,
    FAULTS,
    HAS_OPEN,
    LINES_DROPPED,
    MOST_DESCRIPTORS,
    OPEN,
    UP,
)
from sniproxy.dataplane.listing import Seen
from sniproxy.status.overview import (
    Answered,
    Ask,
    Histogram,
    Overview,
    Process,
    Proxy,
    Step,
    Steps,
    in_pieces,
    overview,
)

VERSION = 1
"""Of the document: it grows with what is added, and changes with nothing less."""

MOST_CONNECTIONS = 1000
"""Connections of one page."""

MOST_AT_ONCE = 100
"""Of them, those of one answer of a worker: it has others to serve meanwhile."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+,\[\] -]*")


def quoted(text: str) -> str:
    """Write a JSON string, with escapes for all but the plainest characters."""
    if _PLAIN.fullmatch(text):
        return f'"{text}"'
    units = text.encode("utf-16-be", "surrogatepass")
    pairs = (units[place : place + 2].hex() for place in range(0, len(units), 2))
    return '"' + "".join(rf"\u{pair}" for pair in pairs) + '"'


def document(proxy: Proxy, now: float, most: int, after: tuple[int, int]) -> Steps:
    """Give the document at the Unix time ``now``, with at most so many connections, none for no
    list, from the worker and descriptor ``after`` on."""
    seen = yield from overview(proxy)
    yield f'{{"version":{VERSION},"time":{now},{_of_the_proxy(seen)},"hosts":['.encode()
    comma = ""
    for some in in_pieces(sorted(seen.hosts)):
        yield (comma + ",".join(_host(host, seen.hosts[host]) for host in some)).encode()
        comma = ","
    yield b"]"
    if most:
        yield b',"open_connections":['
        following = yield from _connections(seen.processes, most, after)
        yield f'],"next":{following}'.encode()
    yield b"}\n"


def _connections(
    processes: Sequence[Process], most: int, after: tuple[int, int]
) -> Generator[Step, Answered | None, str]:
    """List connections, worker by worker; give the JSON of where to go on."""
    worker, first = after
    comma = ""
    for process in sorted(processes):
        if process.number < worker or not process.answered:
            continue
        following = first if process.number == worker else 0
        while following >= 0:
            if not most:
                return quoted(f"{process.number}.{following}")
            answered = yield Ask(process.number, following, min(most, MOST_AT_ONCE))
            if answered is None:  # it hangs, or has died
                break
            if answered.many:
                yield (comma + answered.rows).encode()
                comma = ","
            most -= answered.many
            following = answered.following
    return "null"


def connection(worker: int, seen: Seen) -> str:
    """Write one open connection."""
    return (
        f'{{"client":{quoted(seen.client)},"host":{quoted(seen.host)},"state":"{seen.state}",'
        f'"worker":{worker},"age":{_seconds(seen.age)},"idle":{_seconds(seen.idle)},'
        f'"bytes_up":{seen.up},"bytes_down":{seen.down}}}'
    )


def _seconds(value: float | None) -> str:
    return "null" if value is None else f"{max(0.0, value):.3f}"


def _of_the_proxy(seen: Overview) -> str:
    about, numbers = seen.about, seen.numbers
    reasons = ",".join(
        f"{quoted(reason)}:{count}" for reason, count in sorted(seen.reasons.items())
    )
    return (
        f'"started":{about.started},'
        f'"build":{{"version":{quoted(about.version)},"flavour":{quoted(about.flavour)}}},'
        f'"listen":{_list(map(quoted, about.listen))},'
        f'"isolate":{"true" if about.isolate else "false"},'
        f'"workers":{_list(map(_worker, seen.processes))},"worker_restarts":{seen.restarts},'
        f'"connections":{{"accepted":{numbers[ACCEPTED]},"adopted":{numbers[ADOPTED]},'
        f'"open":{numbers[OPEN]},"refused":{{{reasons}}}}},'
        f'"bytes_up":{seen.sums[UP]},"bytes_down":{seen.sums[DOWN]},'
        f'"hello_seconds":{_histogram(seen.hello)},"backend_seconds":{_histogram(seen.backend)},'
        f'"log_lines_dropped":{numbers[LINES_DROPPED] + seen.lines_lost}'
    )


def _worker(process: Process) -> str:
    counts = process.counts
    return (
        f'{{"number":{process.number},"pid":{process.pid},"open":{counts[OPEN]},'
        f'"descriptors":{counts[DESCRIPTORS]},"descriptors_max":{counts[MOST_DESCRIPTORS]},'
        f'"answered":{"true" if process.answered else "false"}}}'
    )


def _histogram(times: Histogram) -> str:
    pairs = zip(BOUNDS, times.buckets, strict=True)
    buckets = _list(f"[{bound},{count}]" for bound, count in pairs)
    return f'{{"count":{times.observed},"sum":{times.total},"buckets":{buckets}}}'


def _host(host: str, numbers: Sequence[int]) -> str:
    return (
        f'{{"host":{quoted(host)},"open":{numbers[HAS_OPEN]},"connections":{numbers[CONNECTIONS]},'
        f'"bytes_up":{numbers[UP]},"bytes_down":{numbers[DOWN]},'
        f'"backend_faults":{numbers[FAULTS]}}}'
    )


def _list(items: Iterable[str]) -> str:
    return f"[{','.join(items)}]"
