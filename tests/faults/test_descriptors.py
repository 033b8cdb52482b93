"""No descriptor is left: accepting goes on, and nobody's bytes become another's."""

import os
import pathlib
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import Proxy, directory_name, read_exactly
from tests.faults.harness import HELLO, SERVED, ask, crowd, descriptors, eventually
from tests.hello import hello

LIMIT = 256
"""Descriptors: more than are accepted in one batch, so that a client has its turn in between."""


def few() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


def test_clients_keep_coming(unharmed: Callable[..., Proxy], full: bool) -> None:
    """For a while, more slow clients than descriptors; each honest client is served."""
    proxy = unharmed(preexec=few)
    seconds = 60.0 if full else 3.0
    over = threading.Event()
    attackers = 0

    def attack() -> None:
        nonlocal attackers
        open_now: list[socket.socket] = []
        while not over.is_set():
            for client in crowd(proxy, 20, HELLO[:10]):
                open_now.append(client)
                attackers += 1
            for client in open_now[: max(0, len(open_now) - 3 * LIMIT)]:
                client.close()
            del open_now[: max(0, len(open_now) - 3 * LIMIT)]
        for client in open_now:
            client.close()

    thread = threading.Thread(target=attack)
    thread.start()
    served = 0
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            ask(proxy)
            served += 1
    finally:
        over.set()
        thread.join()
    assert attackers > LIMIT
    print(f"figures: {attackers} slow clients on {LIMIT} descriptors, {served} honest ones served")


def test_refused_clients_that_stay_hold_nothing_for_long(unharmed: Callable[..., Proxy]) -> None:
    proxy = unharmed(preexec=few)
    rude = list(crowd(proxy, 3 * LIMIT, b"GET / HTTP/1.0\r\n\r\n"))
    ask(proxy)
    for client in rude:
        client.close()


@pytest.mark.parametrize("workers", ["1"], indirect=True)
@pytest.mark.parametrize("pending", [b"", b"\xee" * 3000])
def test_an_evicted_client_writes_into_nobody_elses_hello(
    unharmed: Callable[..., Proxy], backend_of: Callable[..., object], pending: bytes
) -> None:
    """The last descriptor takes a client; its backend's costs the oldest slow one its own.

    What that one has sent meanwhile is thrown away, and must not end up in front of the backend.
    """
    proxy = unharmed(preexec=few)
    backend = backend_of(proxy.directory("b.example"))
    pid = proxy.process.pid
    room = LIMIT - 1 - sum(descriptors(pid).values())
    slow = list(crowd(proxy, room, HELLO[:10]))
    eventually(lambda: sum(descriptors(pid).values()) == LIMIT - 1, "not full")
    wire = hello("b.example", padding=5000)
    os.kill(pid, signal.SIGSTOP)
    with proxy.connect() as client:
        client.sendall(wire)
        for one in slow:
            one.sendall(pending)
        os.kill(pid, signal.SIGCONT)
        stream = backend.accept()  # type: ignore[attr-defined]
        assert read_exactly(stream, len(wire)) == wire
        stream.sendall(SERVED)
        stream.close()
        assert read_exactly(client, len(SERVED)) == SERVED
    for one in slow:
        one.close()


@pytest.mark.parametrize("limit", range(6, 17))
def test_too_few_to_start(
    command: list[str], hashed: bool, workers: str, tmp_path: pathlib.Path, limit: int
) -> None:
    """It serves, or says that it can't; it never dies with a traceback."""
    hosts = tmp_path / "hosts"
    directory = hosts / directory_name(hashed, "no.example")
    directory.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = Proxy(
            command,
            hosts,
            listening,
            {"SNIPROXY_WORKERS": workers},
            lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )
        eventually(
            lambda: proxy.process.poll() is not None or "event=start" in proxy.log,
            lambda: proxy.log,
        )
        if proxy.process.poll() is None:
            assert proxy.stop(signal.SIGTERM, signal.SIGTERM) == 0
        else:
            assert proxy.process.returncode == 1
            assert "sniproxy: can't start: " in proxy.log
        assert "Traceback" not in proxy.log
