"""Processes of the proxy are killed while clients are busy."""

import os
import resource
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import (
    Proxy,
    children,
    in_thread,
    lowest_free_descriptor,
    read_exactly,
)
from tests.faults.harness import (
    HELLO,
    HOST,
    SERVED,
    Backend,
    ask,
    at_rest,
    crowd,
    descriptors,
    eventually,
)

Start = Callable[..., Proxy]

pytestmark = pytest.mark.parametrize("workers", ["2"], indirect=True)


def sockets_of_workers(proxy: Proxy) -> list[int]:
    return [descriptors(pid)["socket"] for pid in children(proxy.process.pid)]


def test_killed_again_and_again_under_load(unharmed: Start) -> None:
    """Only who was with the victim notices; the number of workers is kept."""
    proxy = unharmed(growth=32 << 20)
    over = threading.Event()
    counts = {"served": 0, "lost": 0}

    def knock() -> None:
        while not over.is_set():
            try:
                ask(proxy)
            except (AssertionError, ConnectionError):
                counts["lost"] += 1
            else:
                counts["served"] += 1

    threads = [in_thread(knock) for _ in range(2)]
    for _ in range(3):
        others: list[socket.socket] = []
        # Bursts go to one worker or the other: on until both have a good share.
        while len(others) < 100 or min(sockets_of_workers(proxy)) < 20:
            for client in crowd(proxy, 10, HELLO):
                others.append(client)
                assert read_exactly(client, len(SERVED)) == SERVED
        victim = children(proxy.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        eventually(
            lambda victim=victim: victim not in children(proxy.process.pid), "the victim lives"
        )
        kept = 0
        for client in others:
            try:
                client.sendall(b"?")
                kept += client.recv(1) == b"?"
            except ConnectionError:
                pass
            client.close()
        assert 0 < kept < len(others)
        eventually(lambda: len(children(proxy.process.pid)) == 2, "no successor")
    over.set()
    for thread in threads:
        thread.join()
    # At each killing a thread has one connection to lose, and one more that was just accepted.
    assert counts["lost"] <= 3 * 2 * 2
    assert counts["served"]


def test_the_supervisor_is_killed_and_a_new_copy_started(
    start: Start, serve: Callable[..., Backend]
) -> None:
    """On the same listening socket the next copy serves at once. The old workers go on, and end
    when the time for a stop is over, with a connection that has not ended by itself."""
    proxy = start()
    serve(proxy.directory(HOST))
    ask(proxy)
    eventually(lambda: len(children(proxy.process.pid)) == 2, "not all started")
    workers = children(proxy.process.pid)
    with proxy.connect() as client:
        client.sendall(HELLO)
        assert read_exactly(client, len(SERVED)) == SERVED
        proxy.process.kill()
        proxy.process.wait()
        following = start(proxy.listening)
        for _ in range(100):
            ask(following)
        client.sendall(b"still here")
        assert read_exactly(client, 10) == b"still here"
        eventually(
            lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), "workers are left"
        )
        assert client.recv(1) == b""


def test_one_worker_has_no_descriptor_left(start: Start, serve: Callable[..., Backend]) -> None:
    """Only one is woken for a connection; what it can't take, the other does."""
    proxy = start()
    serve(proxy.directory(HOST))
    ask(proxy)
    at_rest(proxy)
    for worker in children(proxy.process.pid):
        lowest_free = lowest_free_descriptor(worker)
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
        for _ in range(50):
            ask(proxy)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
        at_rest(proxy)
    assert "event=accept_failed" in proxy.log
