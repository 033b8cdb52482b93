"""Workers share evenly: how many connections each of them has got, at light load, when many come at
once, and when a worker or all of them have been replaced.

Which worker has a connection says the backend's end of it, by the process that has connected.
"""

import collections
import os
import signal
import socket
import struct
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import Backend, Proxy, children, read_exactly, state, wait_until
from tests.end_to_end.test_workers import workers_of
from tests.hello import hello

HELLO = hello("a.example")
EACH = 12
"""Connections that each worker gets at light load, and holds over a hand-over."""

BURST = 120
LEAST_BURSTS, MOST_BURSTS = 20, 100
"""Connections that come at once, and how often, until they have been shared evenly: not by chance,
and not where the scheduler only happens to be against it."""

EVEN = 1.5
"""Times as many connections as the idlest worker has got that the busiest may have."""

Start = Callable[..., Proxy]
Make = Callable[..., Backend]
Shares = collections.Counter[int]

pytestmark = pytest.mark.parametrize("workers", ["2", "4", "8"], indirect=True)


class Site:
    """A proxy of several workers, and a backend that knows them apart."""

    def __init__(self, proxy: Proxy, backend: Backend) -> None:
        self.proxy = proxy
        self.backend = backend
        self.count = int(proxy.environment["SNIPROXY_WORKERS"])

    def workers(self) -> list[int]:
        return children(self.proxy.process.pid)

    def rests(self) -> bool:
        """Say whether all workers are there, and wait for something to do."""
        workers = self.workers()
        return len(workers) == self.count and all(state(one) == "S" for one in workers)

    def begin(self) -> socket.socket:
        client = self.proxy.connect()
        client.sendall(HELLO)
        return client

    def accept(self) -> tuple[socket.socket, int]:
        """Take one connection; say which worker has made it."""
        stream = self.backend.accept()
        self.backend.accepted.pop()
        assert read_exactly(stream, len(HELLO)) == HELLO
        made_by = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return stream, struct.unpack("iII", made_by)[0]

    def one_at_a_time(self) -> Shares:
        """Have each connection begin when nothing is left to be done."""
        shares: Shares = collections.Counter()
        for _ in range(EACH * self.count):
            wait_until(self.rests)
            with self.begin():
                stream, worker = self.accept()
                stream.close()
            shares[worker] += 1
        return shares

    def even(self, shares: Shares) -> bool:
        return len(shares) == self.count and max(shares.values()) <= EVEN * min(shares.values())


@pytest.fixture
def site(start: Start, backend_of: Make) -> Site:
    proxy = start()
    return Site(proxy, backend_of(proxy.directory("a.example"), 2 * BURST))


def test_one_at_a_time(site: Site) -> None:
    """Each goes to who has had none for longest."""
    shares = site.one_at_a_time()
    assert site.even(shares), shares


def test_many_at_once(site: Site) -> None:
    """Whoever has taken more than the others lets them have a moment: else the scheduler decides,
    and where others want the CPUs as well, it decides in favour of the same ones each time."""
    shares: Shares = collections.Counter()
    for burst in range(MOST_BURSTS):
        wait_until(site.rests)
        clients = [site.begin() for _ in range(BURST)]
        for _ in clients:
            stream, worker = site.accept()
            shares[worker] += 1
            stream.close()
        for client in clients:
            client.close()
        if burst >= LEAST_BURSTS and site.even(shares):
            return
    pytest.fail(f"never even: {shares}")


def test_after_a_worker_has_died(site: Site) -> None:
    """The one in its place takes as many as the others."""
    wait_until(site.rests)
    victim = site.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in site.workers() and site.rests())
    shares = site.one_at_a_time()
    assert site.even(shares), shares


def test_after_a_hand_over(site: Site) -> None:
    """What was open is shared among the new workers, and so are new clients."""
    pairs = []
    for _ in range(EACH * site.count):
        wait_until(site.rests)
        client = site.begin()
        pairs.append((client, site.accept()[0]))
    before = set(site.workers())
    site.proxy.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: not before & set(site.workers()) and site.rests())
    adopted = collections.Counter(workers_of(site.proxy, [client for client, _ in pairs]))
    shares = site.one_at_a_time()
    for client, stream in pairs:
        client.close()
        stream.close()
    assert site.even(adopted), adopted
    assert site.even(shares), shares
