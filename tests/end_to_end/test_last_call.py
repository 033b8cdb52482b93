"""The queue of the listening socket when we are stopped: who waits in it is served, whether anybody
else has the socket or not."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Proxy,
    children,
    directory_name,
    in_thread,
    read_all,
    state,
    wait_until,
)
from tests.hello import hello

HELLO = hello("a.example")
CLIENTS = 400
Start = Callable[..., Proxy]
Make = Callable[..., Backend]

LISTEN = "import sys; from sniproxy.commands import sniproxy_listen; sys.exit(sniproxy_listen())"


class Listening:
    """A proxy that ``sniproxy-listen`` has become, at an address of its own."""

    def __init__(self, command: list[str], hosts: pathlib.Path, address: str, workers: str) -> None:
        # The executable is the command that its first word names.
        named = [sys.executable, "-P", "-c", LISTEN]
        words = ["sniproxy-listen"] if len(command) == 1 else named
        executable = command[0] if len(command) == 1 else None
        self.process = subprocess.Popen(
            [*words, "--directory", str(hosts), address, *command],
            executable=executable,
            env=os.environ | {"SNIPROXY_WORKERS": workers},
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str | tuple[str, int]:
    """Somewhere to listen."""
    if request.param == "unix":
        return str(tmp_path / "socket")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        name: tuple[str, int] = free.getsockname()
        return name


@pytest.fixture
def listening(
    command: list[str],
    hashed: bool,
    workers: str,
    address: str | tuple[str, int],
    tmp_path: pathlib.Path,
) -> Iterator[Listening]:
    hosts = tmp_path / "hosts"
    (hosts / directory_name(hashed, "a.example")).mkdir(parents=True)
    word = f"unix:{address}" if isinstance(address, str) else f"127.0.0.1:{address[1]}"
    made = Listening(command, hosts, word, workers)
    wait_until(lambda: serves(address))
    count = 0 if workers == "1" else int(workers)
    wait_until(lambda: len(children(made.process.pid)) == count)
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.wait()


def serves(address: str | tuple[str, int]) -> bool:
    """Say whether somebody listens; then wait for an answer, which tells that it has started."""
    with client(address) as one:
        if one.connect_ex(address):
            return False
        one.sendall(b"G")
        return read_all(one) == b"\x15\3\3\0\2\2\x0a"


def client(address: str | tuple[str, int]) -> socket.socket:
    """Make a socket that can connect there."""
    made = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    made.settimeout(TIMEOUT)
    return made


def in_the_queue(address: str | tuple[str, int], pid: int) -> list[socket.socket]:
    """Connect clients while nobody accepts, and stop the proxy before anybody does again."""
    workers = children(pid)
    for one in (pid, *workers):
        os.kill(one, signal.SIGSTOP)
    wait_until(lambda: all(state(one) == "T" for one in (pid, *workers)))
    clients = [client(address) for _ in range(CLIENTS)]
    for each in clients:
        each.connect(address)
        each.sendall(HELLO)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    for one in workers:
        os.kill(one, signal.SIGCONT)
    return clients


def all_served(clients: list[socket.socket], backend: Backend) -> None:
    for _ in clients:
        stream = backend.accept()
        stream.sendall(b"served")
        stream.close()
    assert {read_all(each) for each in clients} == {b"served"}
    for each in clients:
        each.close()


def test_whoever_waits_is_served_by_the_last_that_has_the_socket(
    listening: Listening,
    address: str | tuple[str, int],
    backend_of: Make,
    hashed: bool,
    tmp_path: pathlib.Path,
) -> None:
    backend = backend_of(tmp_path / "hosts" / directory_name(hashed, "a.example"), 2 * CLIENTS)
    clients = in_the_queue(address, listening.process.pid)
    all_served(clients, backend)
    assert listening.process.wait(TIMEOUT) == 0


def test_nobody_who_has_connected_is_reset_by_the_end(
    listening: Listening,
    address: str | tuple[str, int],
    backend_of: Make,
    hashed: bool,
    tmp_path: pathlib.Path,
) -> None:
    """Clients connect until there is nobody to connect to: each is served or refused."""
    directory = tmp_path / "hosts" / directory_name(hashed, "a.example")
    backend = backend_of(directory, 2 * CLIENTS)
    answers: list[bytes] = []
    refused: list[int] = []

    def keep_connecting() -> None:
        while not refused:
            with client(address) as one:
                error = one.connect_ex(address)
                if error:
                    refused.append(error)
                    return
                try:
                    one.sendall(HELLO)
                    answers.append(read_all(one))
                except ConnectionError:
                    answers.append(b"reset")

    def serve() -> None:
        while True:
            with backend.accept() as stream:
                if stream.recv(1) == b"":
                    return
                stream.sendall(b"served")
                # All of the hello is to be read, or its end would be a reset.
                stream.recv(len(HELLO))

    serving = in_thread(serve)
    crowd = [in_thread(keep_connecting) for _ in range(4)]
    wait_until(lambda: len(answers) > 50)
    listening.process.send_signal(signal.SIGTERM)
    for thread in crowd:
        thread.join()
    assert listening.process.wait(TIMEOUT) == 0
    tls_socket = str(directory / "tls-socket")
    with client(tls_socket) as last:
        last.connect(tls_socket)
    serving.join()
    assert set(answers) == {b"served"}


def test_the_same_where_nobody_knows_who_has_the_socket(start: Start, backend_of: Make) -> None:
    """As a shell or s6 passes it."""
    proxy = start()
    backend = backend_of(proxy.directory("a.example"), 2 * CLIENTS)
    count = int(proxy.environment["SNIPROXY_WORKERS"])
    wait_until(lambda: len(children(proxy.process.pid)) == (count if count > 1 else 0))
    assert proxy.ask(b"G") == b"\x15\3\3\0\2\2\x0a"
    address = proxy.listening.getsockname()
    proxy.listening.close()
    all_served(in_the_queue(address, proxy.process.pid), backend)
    assert proxy.process.wait(TIMEOUT) == 0
