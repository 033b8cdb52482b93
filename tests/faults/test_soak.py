"""Every byte, for a while: random transfers in both directions under restarts of the proxy.

Some threads open connection after connection. On each, both directions run at once, in pieces and
pauses of random size, sometimes half-closed early, sometimes with the client's side over its limit
so that the relay holds, copies or splices. The sender and the receiver of a direction each keep a
checksum of what they handled; the two must be the same. Meanwhile the proxy is replaced now and
then by a new copy on the same listening socket, as a service manager does: SIGHUP for the old one,
after the new one has started, and no connection may notice. Or it is run anew in its process, by
SIGUSR2, and takes all connections along.
"""

import dataclasses
import hashlib
import os
import random
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import TIMEOUT, Proxy, in_thread, read_exactly, wait_until
from tests.faults.harness import HOST, PATIENCE
from tests.hello import hello

Start = Callable[..., Proxy]

CONNECTIONS = 6
"""Connections at a time."""

LARGEST = 8_000_000
"""Bytes of a direction of one connection; most have far fewer, so that it ends within a drain."""

MOST_PIECES = 300
"""Reads and writes of one direction, more or less."""

SMALL_BUFFER = 8192


@dataclasses.dataclass
class Tally:
    """What all connections together have come to."""

    connections: int = 0
    up: int = 0
    down: int = 0
    differences: list[str] = dataclasses.field(default_factory=list)


class Direction:
    """One direction of a connection: its sender's state, and what both ends have seen."""

    def __init__(
        self, sender: socket.socket, receiver: socket.socket, chance: random.Random
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.left = int(LARGEST ** chance.random())
        # Not so small that a connection outlives the drain of its proxy.
        least = self.left // MOST_PIECES + 1
        self.piece = max(least, int(400_000 ** chance.random()))
        self.taken = max(least, int(400_000 ** chance.random()))
        self.lazy = chance.random() < 0.3
        self.chance = chance
        self.sent = self.received = 0
        self.of_sent, self.of_received = hashlib.blake2b(), hashlib.blake2b()
        self.pending = b""
        self.finished = self.ended = False

    def send(self) -> None:
        if not self.pending:
            if not self.left:
                self.sender.shutdown(socket.SHUT_WR)
                self.finished = True
                return
            size = min(self.left, self.chance.randint(1, self.piece))
            self.left -= size
            # Cheap to make, and no two pieces alike.
            self.pending = self.chance.randbytes(min(size, 997)) * (size // 997 + 1)
            self.pending = self.pending[:size]
        try:
            count = self.sender.send(self.pending)
        except BlockingIOError:
            return
        self.of_sent.update(self.pending[:count])
        self.sent += count
        self.pending = self.pending[count:]

    def receive(self) -> None:
        try:
            data = self.receiver.recv(self.taken)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
            return
        self.of_received.update(data)
        self.received += len(data)


def transfer(
    client: socket.socket, stream: socket.socket, chance: random.Random
) -> list[Direction]:
    """Run both directions until both have ended."""
    directions = [Direction(client, stream, chance), Direction(stream, client, chance)]
    for end in (client, stream):
        end.setblocking(False)
        if chance.random() < 0.3:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    quiet_since = time.monotonic()
    while not all(one.ended for one in directions):
        readers = {one.receiver: one for one in directions if not one.ended}
        writers = {one.sender: one for one in directions if not one.finished}
        readable, writable, _ = select.select(list(readers), list(writers), [], 1)
        before = [(one.sent, one.received, one.ended, one.finished) for one in directions]
        for end in writable:
            if not (writers[end].lazy and chance.random() < 0.7):
                writers[end].send()
        for end in readable:
            if not (readers[end].lazy and chance.random() < 0.7):
                readers[end].receive()
        now = time.monotonic()
        if before != [(one.sent, one.received, one.ended, one.finished) for one in directions]:
            quiet_since = now
        elif now - quiet_since > PATIENCE:
            return directions
        if chance.random() < 0.01:
            # A pause in the middle, as people make.
            select.select([], [], [], chance.random() * 0.05)
    return directions


class Soak:
    """Connections through whatever proxy accepts from the listening socket at the moment."""

    def __init__(self, address: tuple[str, int], listening: socket.socket) -> None:
        self.address = address
        self.backend = listening
        self.over = threading.Event()
        self.tally = Tally()
        self.lock = threading.Lock()

    def connect(self, wire: bytes, *, small: bool) -> tuple[socket.socket, socket.socket]:
        """Open one connection; give its client and the backend's end of it."""
        client = socket.socket()
        client.settimeout(TIMEOUT)
        if small:
            # Before the window is announced: one that shrinks later loses segments.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        with self.lock:
            # One at a time, so that the two ends are known to belong together.
            client.connect(self.address)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(wire)
            stream, _ = self.backend.accept()
            stream.settimeout(TIMEOUT)
            assert read_exactly(stream, len(wire)) == wire
        return client, stream

    def work(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.over.is_set():
            wire = hello(HOST, record=chance.choice([1, 50, 2**14]), padding=chance.randrange(3000))
            try:
                client, stream = self.connect(wire, small=chance.random() < 0.3)
                with client, stream:
                    directions = transfer(client, stream, chance)
            except (OSError, AssertionError) as error:
                self.tally.differences.append(repr(error))
                continue
            self.count(directions)

    def run(self, seconds: float, restart: Callable[[], None]) -> int:
        """Restart again and again while connections come; give how many times."""
        threads = [in_thread(lambda seed=seed: self.work(seed)) for seed in range(CONNECTIONS)]
        deadline = time.monotonic() + seconds
        restarts = 0
        try:
            while time.monotonic() < deadline and not self.tally.differences:
                restart()
                restarts += 1
        finally:
            self.over.set()
            for thread in threads:
                thread.join()
        return restarts

    def count(self, directions: list[Direction]) -> None:
        up, down = directions
        with self.lock:
            self.tally.connections += 1
            self.tally.up += up.received
            self.tally.down += down.received
            for name, one in (("up", up), ("down", down)):
                if one.of_sent.digest() != one.of_received.digest() or not one.ended:
                    self.tally.differences.append(
                        f"{name}: sent {one.sent}, received {one.received}, ended {one.ended}"
                    )


@pytest.mark.timeout(900)
def test_every_byte_under_restarts(
    start: Start, backend_of: Callable[..., object], full: bool
) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "600" if full else "12"))
    proxy = start()
    backend = backend_of(proxy.directory(HOST), 100)
    soak = Soak(proxy.listening.getsockname(), backend.listening)  # type: ignore[attr-defined]
    copies = [proxy]

    def restart() -> None:
        soak.over.wait(2)
        copies.append(start(proxy.listening))
        # The new one is there when it has logged so; the old one may go.
        while "event=start" not in copies[-1].log:
            soak.over.wait(0.01)
        copies[-2].process.send_signal(signal.SIGHUP)

    restarts = soak.run(seconds, restart)
    tally = soak.tally
    assert tally.differences == [], [copy.log for copy in copies]
    assert tally.connections > restarts > 0
    for copy in copies[:-1]:
        assert copy.process.wait(TIMEOUT) == 0
        assert "out_of_time" not in copy.log
    print(
        f"figures: {seconds:.0f} s, {restarts} restarts, {tally.connections} connections, "
        f"{tally.up} bytes up, {tally.down} bytes down, no difference"
    )


@pytest.mark.timeout(900)
def test_every_byte_under_renewals(
    start: Start, backend_of: Callable[..., object], full: bool
) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "600" if full else "12"))
    proxy = start()
    backend = backend_of(proxy.directory(HOST), 100)
    soak = Soak(proxy.listening.getsockname(), backend.listening)  # type: ignore[attr-defined]
    # Before that, the signal ends it like any other.
    wait_until(lambda: "event=start " in proxy.log)

    def renew() -> None:
        soak.over.wait(0.5)
        started = proxy.log.count("event=start ")
        proxy.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: proxy.log.count("event=start ") > started)

    renewals = soak.run(seconds, renew)
    tally = soak.tally
    assert tally.differences == [], proxy.log
    assert tally.connections > 0
    assert renewals > 0
    adopted = [int(count) for count in re.findall(r" adopted=(\d+) lost=0\n", proxy.log)]
    assert sum(adopted) > 0
    assert len(re.findall(r" lost=", proxy.log)) == len(adopted)
    assert "connections_closed" not in proxy.log
    print(
        f"figures: {seconds:.0f} s, {renewals} renewals with {sum(adopted)} connections, "
        f"{tally.connections} connections, {tally.up} bytes up, {tally.down} bytes down, "
        "no difference"
    )
