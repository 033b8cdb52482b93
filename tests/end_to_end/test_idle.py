"""Ten thousand connections at once that say nothing, in one process."""

import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.harness import TIMEOUT, Proxy, memory, read_exactly, reset
from tests.hello import hello

HELLO = hello("a.example")
COUNT = 10_000
FIRST = 1_000
"""Connections after which everything that is made once has been made."""

SPARE = 100
"""Descriptors for everything else."""

MOST_EACH = 1024
"""Bytes of process memory for one more connection, those of the kernel apart."""

BACKEND = """
import os, resource, socket
os.chdir(os.sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listening = socket.socket(socket.AF_UNIX)
listening.bind("tls-socket")
listening.listen(100)
print("listening", flush=True)
held = []
while True:
    stream = listening.accept()[0]
    held.append(stream)
    stream.recv(65536)
    stream.send(b"k")
"""


@pytest.fixture
def count() -> Iterator[int]:
    """Raise the limits of descriptors, those of the programs that are started included; give how
    many connections they allow. Root may raise the hard limit, but not in every container."""
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * COUNT + SPARE
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE) // 2
    if allowed < 2 * FIRST:
        pytest.skip(f"the limit of {hard} descriptors allows only {allowed} connections")
    yield min(COUNT, allowed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, before[1]), before[1]))


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_ten_thousand_idle_connections(start: Callable[..., Proxy], count: int) -> None:
    def lower_soft_limit() -> None:
        # The program raises it by itself.
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )

    proxy = start(preexec=lower_soft_limit)
    directory = proxy.directory("a.example")
    with subprocess.Popen(
        [sys.executable, "-c", BACKEND, str(directory)], stdout=subprocess.PIPE
    ) as backend:
        assert backend.stdout
        assert backend.stdout.readline() == b"listening\n"
        clients: list[socket.socket] = []
        try:
            while len(clients) < FIRST:
                clients.append(connect(proxy, len(clients)))
            before = memory(proxy)
            while len(clients) < count:
                clients.append(connect(proxy, len(clients)))
            each = (memory(proxy) - before) / (count - FIRST)
            assert each <= MOST_EACH, f"{each} bytes each"
            # They are held, and each still works.
            for client in clients[:: count // 100]:
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
        finally:
            for client in clients:
                # No address of this machine is to wait for late packets of ten thousand.
                reset(client)
            backend.kill()
    assert "accept_failed" not in proxy.log


def connect(proxy: Proxy, number: int) -> socket.socket:
    """Open a connection, from one of several addresses of loopback, and see that it is relayed."""
    client = socket.create_connection(
        proxy.listening.getsockname(), TIMEOUT, source_address=(f"127.0.1.{1 + number % 8}", 0)
    )
    client.sendall(HELLO)
    assert read_exactly(client, 1) == b"k"
    return client
