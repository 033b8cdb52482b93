"""Metrics: OpenMetrics 1.0 text, or Prometheus' older text format (0.0.4) for who asks for that.

Names and units follow Prometheus' conventions. Counters begin anew with the proxy, and say when;
no worker's end makes one go back. What has a host is of directories that were found
(``dataplane/counts.py``): a client can't make up any.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

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
from sniproxy.status.overview import Histogram, Overview, Proxy, Steps, in_pieces, overview

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CLASSIC = "text/plain; version=0.0.4; charset=utf-8"

_PLAIN = re.compile(r"[A-Za-z0-9_.-]*")

Labels = dict[str, object]
Sample = tuple[Labels, object]

_OF_A_HOST = (
    ("connections", "counter", "", CONNECTIONS, "Connections that have reached the host's backend"),
    ("open_connections", "gauge", "", HAS_OPEN, "Connections that are open to the host's backend"),
    ("received_bytes", "counter", "bytes", UP, "Bytes from the host's clients to its backend"),
    ("sent_bytes", "counter", "bytes", DOWN, "Bytes from the host's backend to its clients"),
    ("backend_faults", "counter", "", FAULTS, "Clients refused since the backend was not reached"),
)


def metrics(proxy: Proxy, *, classic: bool) -> Steps:
    """Give the metrics as text."""
    write = Writer(proxy.about.started, classic=classic)
    seen = yield from overview(proxy)
    yield _text(_of_the_proxy(write, seen))
    hosts = sorted(seen.hosts)
    for name, kind, unit, field, words in _OF_A_HOST:
        family = write.named(f"sniproxy_host_{name}", kind, unit, words)
        yield _text(family.head)
        for some in in_pieces(hosts):
            yield _text(family.sample({"host": host}, seen.hosts[host][field]) for host in some)
    if not classic:
        yield b"# EOF\n"


def _of_the_proxy(write: "Writer", seen: Overview) -> Iterator[str]:
    numbers, about = seen.numbers, seen.about
    of_workers: dict[int, list[Sample]] = {
        field: [({"worker": one.number}, one.counts[field]) for one in seen.processes]
        for field in (OPEN, DESCRIPTORS, MOST_DESCRIPTORS)
    }
    build: Labels = {"version": about.version, "flavour": about.flavour}
    yield from write.family("sniproxy_build", "info", "", "Which build this is", [(build, 1)])
    for name, kind, unit, words, value in (
        ("process_start_time", "gauge", "seconds", "When the proxy was started", about.started),
        ("sniproxy_connections_accepted", "counter", "", "Connections accepted", numbers[ACCEPTED]),
        (
            "sniproxy_connections_adopted",
            "counter",
            "",
            "Connections taken over from the process before",
            numbers[ADOPTED],
        ),
        ("sniproxy_open_connections", "gauge", "", "Connections that are open", numbers[OPEN]),
        ("sniproxy_received", "counter", "bytes", "Bytes from clients to backends", seen.sums[UP]),
        ("sniproxy_sent", "counter", "bytes", "Bytes from backends to clients", seen.sums[DOWN]),
        ("sniproxy_workers", "gauge", "", "Processes that proxy", len(seen.processes)),
        (
            "sniproxy_worker_restarts",
            "counter",
            "",
            "Workers started in place of others that died or hang",
            seen.restarts,
        ),
        (
            "sniproxy_log_lines_dropped",
            "counter",
            "",
            "Lines that the log has not taken",
            numbers[LINES_DROPPED] + seen.lines_lost,
        ),
    ):
        yield from write.family(name, kind, unit, words, [({}, value)])
    yield from write.family(
        "sniproxy_connections_refused",
        "counter",
        "",
        "Connections refused, by the log's word for the reason",
        [({"reason": reason}, count) for reason, count in sorted(seen.reasons.items())],
    )
    for name, words, field in (
        ("sniproxy_worker_open_connections", "Connections that a worker has open", OPEN),
        ("sniproxy_descriptors", "Descriptors that a worker uses", DESCRIPTORS),
        ("sniproxy_descriptors_max", "Descriptors that a worker may use", MOST_DESCRIPTORS),
    ):
        yield from write.family(name, "gauge", "", words, of_workers[field])
    for name, words, times in (
        ("sniproxy_hello", "From the accept to the complete hello", seen.hello),
        ("sniproxy_backend", "From there until the backend has the connection", seen.backend),
    ):
        yield from write.histogram(f"{name}_seconds", "seconds", words, times)


class Family(NamedTuple):
    """A metric family: its name, how it begins, and how a sample of it is written."""

    name: str
    head: list[str]
    sample: Callable[[Labels, object], str]


class Writer:
    """Writes families. Counters say when they were ``created``, where the format has that."""

    def __init__(self, created: float, *, classic: bool) -> None:
        self._created = created
        self._classic = classic

    def named(self, name: str, kind: str, unit: str, words: str) -> Family:
        """Begin a family; ``name`` is without what is appended for its kind."""
        if unit and not name.endswith(unit):
            name = f"{name}_{unit}"
        written = name + {"counter": "_total", "info": "_info"}.get(kind, "")
        if self._classic:
            name, kind = written, "gauge" if kind == "info" else kind
        head = [f"# HELP {name} {words}.\n", f"# TYPE {name} {kind}\n"]
        if unit and not self._classic:
            head.append(f"# UNIT {name} {unit}\n")
        return Family(name, head, lambda labels, value: f"{written}{_labels(labels)} {value}\n")

    def family(
        self, name: str, kind: str, unit: str, words: str, samples: Iterable[Sample]
    ) -> Iterator[str]:
        """Write a whole family."""
        family = self.named(name, kind, unit, words)
        yield from family.head
        for labels, value in samples:
            yield family.sample(labels, value)
            if kind == "counter":
                yield from self._when(family.name, labels)

    def histogram(self, name: str, unit: str, words: str, times: Histogram) -> Iterator[str]:
        yield from self.named(name, "histogram", unit, words).head
        for bound, count in zip([*BOUNDS, "+Inf"], [*times.buckets, times.observed], strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}\n'
        yield f"{name}_count {times.observed}\n"
        yield f"{name}_sum {times.total}\n"
        yield from self._when(name, {})

    def _when(self, name: str, labels: Labels) -> Iterator[str]:
        if not self._classic:
            yield f"{name}_created{_labels(labels)} {self._created}\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: object) -> str:
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _text(lines: Iterable[str]) -> bytes:
    return "".join(lines).encode()
