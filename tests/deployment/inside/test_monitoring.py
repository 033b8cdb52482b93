"""Debian's Prometheus asks the proxy in its jail, as the manual has it, and what it keeps agrees
with what clients did: over a restart, which is a reset that it sees, and a worker's death."""

import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping

import pytest
from manual import block
from support import (
    DROP_INS,
    EXAMPLES,
    TIMEOUT,
    eventually,
    first_message,
    follow,
    main_pid,
    make_host,
    run,
)

HOST, NOBODY = "counted.promise.example", "nobody.promise.example"
HELLO = first_message(HOST)
PROMETHEUS = "127.0.0.1:9090"
COUNTERS = '{job="sniproxy", __name__=~".+_(total|bucket|count|sum)"}'

Pair = tuple[socket.socket, socket.socket]


class Clients:
    """Clients and their backend, which count what they do."""

    def __init__(self, listening: socket.socket) -> None:
        self.connections = self.refused = self.sent = self.received = 0
        self._listening = listening

    def connect(self) -> Pair:
        """Connect a client with the backend."""
        client = socket.create_connection(("127.0.0.1", 443), TIMEOUT)
        client.sendall(HELLO)
        backend, _ = self._listening.accept()
        backend.settimeout(TIMEOUT)
        assert read(backend, len(HELLO)) == HELLO
        self.connections += 1
        self.sent += len(HELLO)
        return client, backend

    def talk(self, pair: Pair, up: int = 1000, down: int = 70_000) -> None:
        client, backend = pair
        client.sendall(bytes(up))
        read(backend, up)
        backend.sendall(bytes(down))
        read(client, down)
        self.sent += up
        self.received += down

    def serve(self, count: int = 10) -> None:
        """Be served, from the first byte to the end of both directions."""
        for _ in range(count):
            pair = self.connect()
            self.talk(pair)
            end(pair)

    def be_refused(self, count: int = 3) -> None:
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", 443), TIMEOUT) as client:
                client.sendall(first_message(NOBODY))
                assert client.recv(99)[:1] == b"\x15"
            self.refused += 1


def read(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        some = stream.recv(size - len(data))
        assert some, f"ended after {len(data)} of {size} bytes"
        data += some
    return data


def end(pair: Pair) -> None:
    for one in pair:
        one.close()


@pytest.fixture
def clients(proxy: None) -> Iterator[Clients]:
    path = make_host(HOST) / "tls-socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(TIMEOUT)
        listening.bind(str(path))
        path.chmod(0o777)
        listening.listen(100)
        yield Clients(listening)


@pytest.fixture
def prometheus(clients: Clients, tmp_path: pathlib.Path) -> Iterator[None]:
    """Have it ask every second, and before any client has come."""
    (DROP_INS / "sniproxy.service.d").mkdir(exist_ok=True)
    (DROP_INS / "sniproxy.service.d" / "workers.conf").write_text(
        "[Service]\nEnvironment=SNIPROXY_WORKERS=2\n"
    )
    follow(block("how-to/monitoring.md", "Prometheus", 0))
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(
        "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n"
        + block("how-to/monitoring.md", "Prometheus", 1)
    )
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address={PROMETHEUS}",
            "--log.level=warn",
        ]
    )
    try:
        eventually("it asks", lambda: value("up") == 1)
        yield
    finally:
        process.kill()
        process.wait()
        run("systemctl", "disable", "--now", "sniproxy-status.socket")
        run("rm", "-r", DROP_INS / "sniproxy-status.socket.d")


def asked(path: str, **parameters: str) -> object:
    """Ask Prometheus' interface."""
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(
        f"http://{PROMETHEUS}/api/v1/{path}?{query}", timeout=TIMEOUT
    ) as answer:
        return json.load(answer)["data"]


def value(expression: str) -> float | None:
    """Give the one value that an expression has now; none, or while nobody answers: None."""
    try:
        found = asked("query", query=expression)["result"]  # type: ignore[index]
    except OSError:
        return None
    assert len(found) < 2, found
    return float(found[0]["value"][1]) if found else None


def series(selector: str) -> dict[str, list[float]]:
    """Give all that is kept of some series, in order."""
    found = asked("query", query=f"{selector}[1h]")["result"]  # type: ignore[index]
    return {
        json.dumps(one["metric"], sort_keys=True): [float(text) for _, text in one["values"]]
        for one in found
    }


def counted(name: str) -> float:
    """Add up what a counter has counted since nobody had come: a host's is first seen when somebody
    has. Where it is less than before it has begun anew, at nought, as Prometheus takes it."""
    (values,) = series(name).values()
    steps = itertools.pairwise(values)
    return values[0] + sum(new - old if new >= old else new for old, new in steps)


def agree(expected: Mapping[str, float]) -> None:
    """Wait until Prometheus has it so."""
    deadline = time.monotonic() + TIMEOUT
    while (found := {one: value(one) for one in expected}) != expected:
        assert time.monotonic() < deadline, (found, expected)
        time.sleep(0.1)


def asks_again() -> None:
    """Wait until it has asked for what is there now."""
    now = time.time()
    eventually("it asks again", lambda: (value("timestamp(up)") or 0) > now + 1)


def workers() -> list[int]:
    return [int(pid) for pid in run("pgrep", "-P", str(main_pid()), check=False).split()]


def of_host(name: str) -> str:
    return f'sniproxy_host_{name}{{host="{HOST}"}}'


def test_counts_agree_over_a_restart(clients: Clients, prometheus: None) -> None:
    agree({"sniproxy_connections_accepted_total": 0, "sniproxy_workers": 2})
    started = value("process_start_time_seconds")
    clients.serve()
    clients.be_refused()
    held = [clients.connect() for _ in range(4)]
    for pair in held:
        clients.talk(pair)
    agree(
        {
            "sniproxy_connections_accepted_total": clients.connections + clients.refused,
            'sniproxy_connections_refused_total{reason="no_such_host"}': clients.refused,
            "sniproxy_connections_adopted_total": 0,
            "sniproxy_open_connections": len(held),
            "sum(sniproxy_worker_open_connections)": len(held),
            "sniproxy_backend_seconds_count": clients.connections,
            of_host("connections_total"): clients.connections,
            of_host("open_connections"): len(held),
            of_host("backend_faults_total"): 0,
            "count(sniproxy_host_connections_total)": 1,
        }
    )
    asks_again()

    run("systemctl", "restart", "sniproxy.service")
    agree(
        {
            "sniproxy_connections_adopted_total": len(held),
            "sniproxy_connections_accepted_total": 0,
            "sniproxy_open_connections": len(held),
            of_host("open_connections"): len(held),
            "changes(process_start_time_seconds[1h])": 1,
            "resets(sniproxy_connections_accepted_total[1h])": 1,
        }
    )
    now = value("process_start_time_seconds")
    assert started is not None
    assert now is not None
    assert started < now <= time.time()
    for pair in held:
        clients.talk(pair)
        end(pair)
    clients.serve()
    agree(
        {
            "sniproxy_connections_accepted_total": 10,
            "sniproxy_open_connections": 0,
            of_host("open_connections"): 0,
        }
    )
    asks_again()
    assert counted("sniproxy_connections_accepted_total") == clients.connections + clients.refused
    for name in ("sniproxy_received_bytes_total", of_host("received_bytes_total")):
        assert counted(name) == clients.sent
    for name in ("sniproxy_sent_bytes_total", of_host("sent_bytes_total")):
        assert counted(name) == clients.received


def test_counts_outlive_a_worker(clients: Clients, prometheus: None) -> None:
    clients.serve(40)
    clients.be_refused()
    held = [clients.connect() for _ in range(20)]
    agree(
        {
            "sniproxy_connections_accepted_total": clients.connections + clients.refused,
            "sniproxy_open_connections": len(held),
        }
    )
    first = workers()[0]
    os.kill(first, signal.SIGKILL)
    eventually("another one", lambda: first not in workers() and len(workers()) == 2)
    left = [pair for pair in held if not has_ended(pair)]
    assert 0 < len(left) < len(held)
    clients.serve()
    agree(
        {
            "sniproxy_connections_accepted_total": clients.connections + clients.refused,
            'sniproxy_connections_refused_total{reason="no_such_host"}': clients.refused,
            of_host("connections_total"): clients.connections,
            "sniproxy_open_connections": len(left),
            of_host("open_connections"): len(left),
            # With the question of each that has not ended.
            of_host("received_bytes_total"): clients.sent + len(left),
            of_host("sent_bytes_total"): clients.received,
            "sniproxy_worker_restarts_total": 1,
            "sniproxy_workers": 2,
            "changes(process_start_time_seconds[1h])": 0,
        }
    )
    kept = series(COUNTERS)
    assert len(kept) > 20
    for name, values in kept.items():
        assert values == sorted(values), name
    for pair in held:
        end(pair)


def has_ended(pair: Pair) -> bool:
    """Say whether a pair was in the worker that is gone: its sockets were closed with it."""
    client, backend = pair
    try:
        client.sendall(b"?")
        return backend.recv(1) != b"?"
    except ConnectionError:
        return True


def test_the_rules_are_taken(prometheus: None) -> None:
    """And none fires."""
    run("promtool", "check", "rules", EXAMPLES / "monitoring" / "sniproxy.rules.yml")

    def rules() -> list[dict[str, object]]:
        groups = asked("rules")["groups"]  # type: ignore[index]
        return [rule for group in groups for rule in group["rules"]]

    eventually("they are evaluated", lambda: all(rule["health"] == "ok" for rule in rules()))
    assert len(rules()) > 6
    assert [rule["name"] for rule in rules() if rule["state"] == "firing"] == []
    assert json.loads((EXAMPLES / "monitoring" / "sniproxy-dashboard.json").read_text())
