"""One client takes all descriptors; those at other addresses, or of other hosts, have theirs."""

import contextlib
import os
import pathlib
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from sniproxy.parser.proxy_header import version_1
from tests.end_to_end.harness import TIMEOUT, Proxy, read_exactly
from tests.faults.harness import HOST, SERVED, Backend
from tests.hello import hello

LIMIT = 300
HONEST = 50
OTHER = "b.example"

Serve = Callable[..., Backend]
Start = Callable[..., Proxy]


def few() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


class Flood:
    """``tests.faults.flood``, in a process of its own, from when it has what there is."""

    def __init__(self, proxy: Proxy, count: int, *options: str) -> None:
        name = proxy.listening.getsockname()
        address = name if isinstance(name, str) else str(name[1])
        command = [sys.executable, "-m", "tests.faults.flood", address, str(count), *options]
        # Without a buffer of ours, or nobody would know of a line that is in it.
        self.process = subprocess.Popen(command, 0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.over = False
        self.line()

    def line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def goes_on(self) -> bool:
        """Say whether it has more attempts to make."""
        while not self.over and select.select([self.process.stdout], [], [], 0)[0]:
            self.over = self.line() in (b"done", b"")
        return not self.over

    def held(self) -> tuple[int, int]:
        """Have it make its attempts; say how many of them were served, and are still open."""
        while not self.over:
            self.over = self.line() in (b"done", b"")
        assert self.process.stdin is not None
        self.process.stdin.close()
        served, left = map(int, self.line().split())
        return served, left

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


@pytest.fixture
def flood() -> Iterator[Callable[..., Flood]]:
    made: list[Flood] = []

    def begin(proxy: Proxy, count: int, *options: str) -> Flood:
        made.append(Flood(proxy, count, *options))
        return made[-1]

    yield begin
    for one in made:
        one.close()


class Honest:
    """Clients who are each somebody else, and keep one connection each."""

    def __init__(
        self,
        proxy: Proxy,
        host: str = HOST,
        *,
        count: int = HONEST,
        announced: bool = False,
        may_be_refused: bool = False,
    ) -> None:
        self.proxy = proxy
        self.wire = hello(host)
        self.announced = announced
        self.may_be_refused = may_be_refused
        self.refused = 0
        self.waits: list[float] = []
        self.clients = [self.ask(number) for number in range(count)]

    def ask(self, number: int) -> socket.socket:
        """Connect as one of them, and be served."""
        begin = time.monotonic()
        client = socket.socket(self.proxy.listening.family)
        if client.family != socket.AF_UNIX:
            client.bind((f"127.0.1.{number + 1}", 0))
        # Not with a time-out yet: a Unix queue that is full would be an error then.
        client.connect(self.proxy.listening.getsockname())
        client.settimeout(TIMEOUT)
        wire = self.wire[:11] + os.urandom(32) + self.wire[43:]
        if self.announced:
            source = f"2001:db8:2:{number:x}::1", 1
            wire = version_1(source, ("2001:db8::1", 443)) + wire
        client.sendall(wire)
        said = client.recv(1)
        if said == b"\x15" and self.may_be_refused:
            client.close()
            self.refused += 1
            return self.ask(number)
        assert said + read_exactly(client, len(SERVED) - 1) == SERVED, self.proxy.log
        self.waits.append(time.monotonic() - begin)
        return client

    def are_there(self) -> None:
        """See that no connection of theirs has ended."""
        for client in self.clients:
            client.sendall(b"still here")
        for client in self.clients:
            assert read_exactly(client, 10) == b"still here"

    def go_on_during(self, flood: Flood) -> None:
        """Have each come once more, and leave, again and again; nobody is refused or ended."""
        number = 0
        while flood.goes_on():
            self.ask(number % len(self.clients)).close()
            number += 1
            if number % len(self.clients) == 0:
                self.are_there()
        self.are_there()

    def leave(self, what: str) -> None:
        for client in self.clients:
            client.close()
        waits = sorted(self.waits)
        p50, p99 = (1000 * waits[len(waits) * part // 100] for part in (50, 99))
        print(
            f"figures: {what}: {len(waits)} honest connections waited "
            f"{p50:.1f} ms (median), {p99:.1f} ms (p99), {1000 * waits[-1]:.0f} ms at most"
        )


@pytest.mark.parametrize("isolate", ["0", "1"])
def test_one_client_and_fifty_honest_ones(
    unharmed: Start, flood: Callable[..., Flood], full: bool, workers: str, isolate: str
) -> None:
    """Also where other processes find the backends, and pass their sockets."""
    proxy = unharmed(preexec=few, SNIPROXY_ISOLATE=isolate)
    count = 100_000 if full else 8_000
    attack = flood(proxy, count)
    honest = Honest(proxy)
    honest.go_on_during(attack)
    # What the honest ones do not need it may keep.
    assert attack.held()[1] > HONEST
    honest.leave(f"{count} attempts, {LIMIT} descriptors, {workers} workers")
    assert "event=descriptors_dealt_out" in proxy.log


def test_one_client_of_a_few_addresses(
    unharmed: Start, flood: Callable[..., Flood], full: bool, workers: str
) -> None:
    proxy = unharmed(preexec=few)
    count = 20_000 if full else 1_000
    attacks = [flood(proxy, count, f"--source=127.0.0.{last}") for last in range(2, 7)]
    honest = Honest(proxy)
    for attack in attacks:
        honest.go_on_during(attack)
    honest.leave(f"{count} attempts of each of 5 addresses, {LIMIT} descriptors, {workers} workers")


def test_half_hellos_of_one_client_and_fifty_honest_ones(
    unharmed: Start, flood: Callable[..., Flood], full: bool, workers: str
) -> None:
    """Counted is now and then, and these come and go: one in hundreds may be refused, and is served
    when it comes again."""
    proxy = unharmed(preexec=few)
    count = 100_000 if full else 4_000
    attack = flood(proxy, count, "--slow")
    honest = Honest(proxy, may_be_refused=True)
    honest.go_on_during(attack)
    assert honest.refused <= 1 + len(honest.waits) // 100
    honest.leave(f"{count} half hellos, {LIMIT} descriptors, {workers} workers")


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_nobody_is_ended_for_who_shares_the_address(
    unharmed: Start, flood: Callable[..., Flood], full: bool
) -> None:
    proxy = unharmed(preexec=few)
    served, left = flood(proxy, 50_000 if full else 4_000).held()
    assert served == left > LIMIT // 3
    assert "event=descriptors_dealt_out" not in proxy.log


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_one_network_of_ipv6(
    start: Start, serve: Serve, flood: Callable[..., Flood], full: bool
) -> None:
    """It has more addresses than anybody counts, and all come through one balancer."""
    proxy = start(preexec=few, SNIPROXY_ACCEPT_PROXY="1")
    serve(proxy.directory(HOST))
    count = 50_000 if full else 4_000
    attack = flood(proxy, count, "--prefix=2001:db8:1:1")
    honest = Honest(proxy, announced=True)
    honest.go_on_during(attack)
    honest.leave(f"{count} attempts of a /64 behind a balancer, {LIMIT} descriptors")


@pytest.mark.parametrize("isolate", ["0", "1"])
@pytest.mark.parametrize("workers", ["1", "2"], indirect=True)
def test_one_host_where_addresses_tell_nothing(
    start: Start,
    serve: Serve,
    flood: Callable[..., Flood],
    full: bool,
    tmp_path: pathlib.Path,
    isolate: str,
) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "listening"))
    listening.listen(1000)
    proxy = start(listening, preexec=few, SNIPROXY_ISOLATE=isolate)
    for host in (HOST, OTHER):
        serve(proxy.directory(host))
    count = 50_000 if full else 4_000
    attack = flood(proxy, count)
    honest = Honest(proxy, OTHER)
    honest.go_on_during(attack)
    honest.leave(f"{count} attempts for one host by a Unix socket, {LIMIT} descriptors")


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_who_waits_for_a_backend_takes_nothing_from_others(
    start: Start, serve: Serve, flood: Callable[..., Flood], full: bool
) -> None:
    """Each of its connections could hold two descriptors for ten seconds."""
    proxy = start(preexec=few)
    serve(proxy.directory(HOST))
    stopped = proxy.directory(OTHER)
    (stopped / "wait-for-backend").touch()
    count = 50_000 if full else 4_000
    attack = flood(proxy, count, f"--host={OTHER}")
    honest = Honest(proxy)
    honest.go_on_during(attack)
    honest.leave(f"{count} attempts for a backend that is not there, {LIMIT} descriptors")
