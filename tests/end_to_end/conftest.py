"""Fixtures of the end-to-end tests."""

import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.harness import Backend, Proxy, commands


@pytest.fixture(scope="session")
def command(request: pytest.FixtureRequest) -> list[str]:
    return commands(request.config.getoption("--sniproxy"))


@pytest.fixture(scope="session")
def hashed(command: list[str]) -> bool:
    line = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    return "(hashed)" in line.stdout


@pytest.fixture(params=["1", "2"], ids=["one_worker", "two_workers"])
def workers(request: pytest.FixtureRequest) -> str:
    """How many processes are to proxy, as SNIPROXY_WORKERS says it."""
    count: str = request.param
    return count


@pytest.fixture
def tmp_path() -> Iterator[pathlib.Path]:
    """Give a folder with a short name: an address of a Unix socket has 107 bytes, of which the
    directory of a hashed host takes 43."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sniproxy-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start(
    command: list[str], hashed: bool, workers: str, tmp_path: pathlib.Path
) -> Iterator[Callable[..., Proxy]]:
    """Start a proxy; at the end it must stop without a traceback or an unexpected error."""
    running: list[Proxy] = []
    sockets: list[socket.socket] = []
    hosts = tmp_path / "hosts"
    hosts.mkdir()

    def begin(
        listening: socket.socket | None = None,
        preexec: Callable[[], None] | None = None,
        **environment: str,
    ) -> Proxy:
        if listening is None:
            listening = socket.create_server(("127.0.0.1", 0), backlog=1000)
        sockets.append(listening)
        variables = {"SNIPROXY_WORKERS": workers} | environment
        proxy = Proxy(command, hosts, listening, variables, preexec)
        proxy.hashed = hashed
        running.append(proxy)
        return proxy

    yield begin
    for listening in sockets:
        listening.close()
    for proxy in running:
        # Two signals: at once, and without a word where the program has hardly started.
        proxy.stop(signal.SIGTERM, signal.SIGHUP)
        assert "Traceback" not in proxy.log
        assert "unexpected_error" not in proxy.log


@pytest.fixture
def proxy(start: Callable[..., Proxy]) -> Proxy:
    return start(SNIPROXY_LOG="connections")


@pytest.fixture
def backend_of() -> Iterator[Callable[..., Backend]]:
    made: list[Backend] = []

    def make(directory: pathlib.Path, backlog: int = 100) -> Backend:
        made.append(Backend(directory, backlog))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def listen(tools: pathlib.Path) -> pathlib.Path:
    return tools / "sniproxy-listen"
