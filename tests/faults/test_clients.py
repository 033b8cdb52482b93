"""Clients that are slow, many, silent, rude or gone."""

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from sniproxy.dataplane.connections import MAX_KEPT
from tests.end_to_end.harness import (
    TIMEOUT,
    Proxy,
    in_thread,
    memory,
    read_all,
    read_exactly,
    reset,
    wait_until,
)
from tests.end_to_end.harness import (
    Backend as EndToEndBackend,
)
from tests.faults.harness import (
    HELLO,
    HOST,
    SERVED,
    Backend,
    ask,
    at_rest,
    crowd,
    eventually,
    family,
    nothing_left,
)
from tests.hello import extension, hello, message, records, server_name

Start = Callable[..., Proxy]


def paused(proxy: Proxy, number: int) -> None:
    """Stop the whole proxy or let it go on, so that several things reach it at once."""
    for pid in family(proxy.process.pid):
        os.kill(pid, number)


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


def test_slow_hellos(unharmed: Start, full: bool) -> None:
    """Many clients owe the rest of their hello; every honest one is served meanwhile."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(20_000, limit - 500) if full else 2_000
    honest = 3_000 if full else 300
    proxy = unharmed(growth=64 << 20)
    slow: list[socket.socket] = []

    def attack() -> None:
        slow.extend(crowd(proxy, count, HELLO[:10]))
        # One byte more from each, again and again, buys nobody a second more.
        for client in slow:
            try:
                client.send(HELLO[10:11])
            except OSError:
                pass

    thread = in_thread(attack)
    times = [ask(proxy) for _ in range(honest)]
    thread.join()
    # Ten seconds later all have been told so.
    for client in slow[:: max(1, count // 100)]:
        assert read_all(client) == b"\x15\3\3\0\2\2\x5a"
    for client in slow:
        client.close()
    print(
        f"figures: {count} slow hellos, {honest} honest clients all served, "
        f"p50 {1000 * percentile(times, 0.5):.1f} ms, p99 {1000 * percentile(times, 0.99):.1f} ms"
    )


def test_idle_connections(unharmed: Start, full: bool) -> None:
    """Thousands of relayed connections that say nothing stay, cost little, and still work."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each takes two descriptors of the proxy.
    count = min(10_000, limit // 2 - 100) if full else 1_000
    proxy = unharmed(growth=64 << 20)
    before = memory(proxy)
    clients = []
    for client in crowd(proxy, count, HELLO):
        assert read_exactly(client, len(SERVED)) == SERVED
        clients.append(client)
    held = memory(proxy) - before
    ask(proxy)
    for client in clients:
        client.sendall(b"?")
    for client in clients:
        assert read_exactly(client, 1) == b"?"
        client.close()
    print(f"figures: {count} idle connections, {held // count} bytes each in the proxy")


def test_clients_reset_at_any_point(unharmed: Start) -> None:
    proxy = unharmed()
    for size in range(0, len(HELLO) + 1, 3):
        client = proxy.connect()
        client.sendall(HELLO[:size])
        reset(client)
    for _ in range(50):
        client = proxy.connect()
        client.sendall(HELLO)
        read_exactly(client, len(SERVED))
        client.sendall(bytes(100_000))
        reset(client)


def test_a_reset_after_a_half_close_ends_both_directions(
    proxy: Proxy, backend_of: Callable[..., object]
) -> None:
    """Both reach the proxy at once, so that one event tells of both."""
    backend = backend_of(proxy.directory(HOST))
    client = proxy.connect()
    client.sendall(HELLO)
    stream = backend.accept()  # type: ignore[attr-defined]
    read_exactly(stream, len(HELLO))
    paused(proxy, signal.SIGSTOP)
    client.shutdown(socket.SHUT_WR)
    reset(client)
    paused(proxy, signal.SIGCONT)
    assert read_all(stream) == b""
    # Gone in both directions: a poll tells so without a byte sent.
    poll = select.poll()
    poll.register(stream, 0)
    assert poll.poll(1000 * TIMEOUT), "the backend is still connected to a client that is gone"


def stuff(client: socket.socket) -> None:
    """Send until nothing more is taken."""
    client.setblocking(False)
    sent, pauses = 0, 0
    while sent < 1 << 27 and pauses < 5:
        try:
            sent += client.send(bytes(1 << 18))
            pauses = 0
        except BlockingIOError:
            select.select([], [client], [], 0.02)
            pauses += 1
    assert sent < 1 << 27


def test_clients_that_never_read(start: Start, serve: Callable[..., Backend]) -> None:
    """Each may hold what fits its buffers, the others are served, and leaving frees all of it."""
    proxy = start()
    serve(proxy.directory(HOST))
    ask(proxy)
    before = at_rest(proxy)
    count = 50
    clients = list(crowd(proxy, count, HELLO))
    for client in clients:
        read_exactly(client, len(SERVED))
        # Until its echo fills both directions.
        stuff(client)
    ask(proxy)
    # 256 KiB each way, and what malloc makes of it.
    assert at_rest(proxy).memory - before.memory < count * 2 * (256 << 10) + (8 << 20)
    for client in clients:
        client.close()
    nothing_left(proxy, before, 32 << 20)


@pytest.mark.timeout(240)
def test_clients_that_outlive_their_backend_take_or_leave(
    start: Start, backend_of: Callable[..., EndToEndBackend], serve: Callable[..., Backend]
) -> None:
    """Who takes nothing goes a minute after the other side has; who takes bytes gets them all,
    though it sends on all the while."""
    proxy = start()
    serve(proxy.directory(HOST))
    ask(proxy)
    before = at_rest(proxy)
    backend = backend_of(proxy.directory("b.example"))
    answer = bytes(range(256)) * 8_000
    clients = []

    def connect() -> tuple[socket.socket, socket.socket]:
        client = proxy.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(hello("b.example"))
        clients.append(client)
        stream = backend.accept()
        read_exactly(stream, len(hello("b.example")))
        return client, stream

    for size in (50_000, len(answer)):
        # All of it in the kernel, or some of it with us; then the backend closes, half-closes, or
        # closes while its client sends on.
        for way in range(3):
            client, stream = connect()
            stream.settimeout(1)
            with contextlib.suppress(TimeoutError):
                stream.sendall(answer[:size])
            if way == 1:
                stream.shutdown(socket.SHUT_WR)
                continue
            stream.close()
            if way == 2:
                client.sendall(bytes(100_000))
    # A backend that takes nothing; all that the client has sent has arrived, and then its end.
    client, stream = connect()
    client.sendall(answer[:500_000])
    client.shutdown(socket.SHUT_WR)

    slow, stream = connect()
    sender = in_thread(lambda: (stream.sendall(answer), stream.close()))
    got = b""
    while len(got) < len(answer):
        got += slow.recv(16_384)
        with contextlib.suppress(BlockingIOError):
            slow.send(b"on", socket.MSG_DONTWAIT)
        time.sleep(0.05)
    sender.join()
    assert got == answer
    slow.close()
    ask(proxy)
    nothing_left(proxy, before, 32 << 20, patience=150)
    for client in clients:
        client.close()


def test_a_killed_client(unharmed: Start) -> None:
    """A process that is killed in the middle of things leaves nothing behind in ours."""
    proxy = unharmed()
    program = (
        "import socket, sys\n"
        "hello = bytes.fromhex(sys.argv[2])\n"
        "streams = [socket.create_connection(('127.0.0.1', int(sys.argv[1]))) for _ in range(40)]\n"
        "for number, stream in enumerate(streams):\n"
        "    stream.sendall(hello[: number * 4])\n"
        "whole = [one for number, one in enumerate(streams) if number * 4 >= len(hello)]\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for one in whole:\n"
        "        one.sendall(bytes(1000))\n"
        "        one.recv(65536)\n"
    )
    port = str(proxy.listening.getsockname()[1])
    client = subprocess.Popen(
        [sys.executable, "-c", program, port, HELLO.hex()], stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"ready\n"
    ask(proxy)
    client.kill()
    client.wait()
    client.stdout.close()


def test_a_stopped_client_goes_on(unharmed: Start) -> None:
    """Nothing is lost on a client that sleeps in the middle of a large answer."""
    proxy = unharmed()
    size = 8_000_000
    program = (
        "import hashlib, socket, sys\n"
        "stream = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "stream.sendall(bytes.fromhex(sys.argv[2]))\n"
        "print('ready', flush=True)\n"
        "import threading\n"
        f"data = bytes(range(251)) * ({size} // 251)\n"
        "def send():\n"
        "    stream.sendall(data)\n"
        "    stream.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=send).start()\n"
        "got = b''.join(iter(lambda: stream.recv(65536), b''))\n"
        "print(got == b'served' + data, flush=True)\n"
    )
    port = str(proxy.listening.getsockname()[1])
    client = subprocess.Popen(
        [sys.executable, "-c", program, port, HELLO.hex()], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    for _ in range(5):
        client.send_signal(signal.SIGSTOP)
        for _ in range(20):
            ask(proxy)
        client.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    assert client.stdout.readline() == "True\n"
    client.wait()
    client.stdout.close()


def test_the_largest_hellos_are_bounded(unharmed: Start) -> None:
    """Records of one byte each, of the largest message whose lengths fit, without its end."""
    proxy = unharmed(growth=32 << 20)
    before = memory(proxy)
    fill = b"".join(extension(21, bytes(65_000)) for _ in range(1))
    wire = records(message(fill + server_name((0, HOST.encode()))), 1)
    count = 40
    clients = list(crowd(proxy, count, wire[:-400]))
    ask(proxy)
    held = memory(proxy) - before
    assert held < count * (2 << 20)
    for client in clients:
        client.close()
    print(f"figures: {len(wire)} bytes of an undecided hello cost {held // count} bytes of memory")


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_undecided_hellos_are_bounded_together(proxy: Proxy) -> None:
    """Many small ones are the oldest, then large ones go over the limit: each that has to make
    room is ended once, and told so."""
    # Once it answers, it listens to signals as well.
    proxy.ask(b"?")
    before = memory(proxy)
    small = list(crowd(proxy, 600, HELLO[:10]))
    fill = extension(21, bytes(65_000)) + server_name((0, HOST.encode()))
    wire = records(message(fill, ciphers=32_000))[:-10]
    count = 280
    assert count * len(wire) > MAX_KEPT
    large = list(crowd(proxy, count, wire))
    waiting, told = small + large, 0

    def agreed() -> bool:
        """Count who was told; compare with what the proxy counts."""
        nonlocal waiting, told
        poll = select.poll()
        for client in waiting:
            poll.register(client, select.POLLIN)
        readable = {fd for fd, _ in poll.poll(0)}
        ready = [client for client in waiting if client.fileno() in readable]
        waiting = [client for client in waiting if client.fileno() not in readable]
        for client in ready:
            try:
                assert client.recv(7) == b"\x15\3\3\0\2\2\x5a"
            except ConnectionResetError:
                pass  # what was left unread of its hello has overtaken the alert
            client.close()
        told += len(ready)
        seen = proxy.log.count("event=totals")
        proxy.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: proxy.log.count("event=totals") > seen)
        totals = [line for line in proxy.log.splitlines() if "event=totals" in line][-1]
        return told > len(small) and f"refused_evicted={told} " in totals

    eventually(agreed, lambda: f"{told} were told; {proxy.log[-300:]}")
    # The limit is on memory: with the parser's copies, and with what a bytearray has in reserve.
    # What malloc and the other objects of a connection add to it is less than half of it.
    held = memory(proxy) - before
    assert MAX_KEPT // 2 < held < MAX_KEPT * 3 // 2, held
    for client in waiting:
        client.close()
    log = proxy.log
    proxy.log_path.write_text("")
    assert "unexpected_error" not in log


def test_random_bytes(unharmed: Start) -> None:
    proxy = unharmed()
    alerts = {b"\x15\3\3\0\2\2" + bytes([code]) for code in (10, 22, 50, 112)}
    for number in range(200):
        start = HELLO[: number % len(HELLO)]
        answer = proxy.ask(start + os.urandom(400), end=True)
        # The name may have been complete by chance, or by its start alone.
        assert answer in alerts or answer.startswith(SERVED), answer


def test_urgent_data_stops_nothing(proxy: Proxy, backend_of: Callable[..., object]) -> None:
    """A read stops short at TCP's urgent byte; what follows it must not wait for another event."""
    backend = backend_of(proxy.directory(HOST))
    with proxy.connect() as client:
        client.sendall(HELLO)
        stream = backend.accept()  # type: ignore[attr-defined]
        read_exactly(stream, len(HELLO))
        paused(proxy, signal.SIGSTOP)
        client.sendall(b"a" * 1000)
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"b" * 1000)
        client.sendall(b"c" * 1000)
        paused(proxy, signal.SIGCONT)
        got = b""
        while len(got.replace(b"!", b"")) < 3000:
            got += stream.recv(65536)
        # Urgent data is beside the stream, RFC 9293 section 3.8.5; the byte itself may be lost.
        assert got.replace(b"!", b"") == b"a" * 1000 + b"b" * 1000 + b"c" * 1000


def test_names_that_are_too_long_are_not_remembered(unharmed: Start, workers: str) -> None:
    """Each of another 65 kB: refused, and nothing of them stays in the table of names."""
    proxy = unharmed()
    for number in range(600 * int(workers)):
        name = f"{number:06}" * 10_900
        assert proxy.ask(hello(name[:65_300])) == b"\x15\3\3\0\2\2\x70"


def test_names_that_nobody_serves(unharmed: Start) -> None:
    """They leave nothing behind, however many."""
    proxy = unharmed()
    for number in range(900):
        assert proxy.ask(hello(f"n{number}.example")) == b"\x15\3\3\0\2\2\x70"
