"""The package, installed once, and a clean proxy for each test."""

import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest
from support import DROP_INS, HERE, HOSTS, Backend, clear_hosts, run


@pytest.fixture(scope="session", autouse=True)
def package() -> None:
    run("dpkg", "--install", HERE / "old.deb")
    run("systemctl", "enable", "--now", "sniproxy.socket")


@pytest.fixture
def hosts() -> Iterator[pathlib.Path]:
    """A hosts directory without hosts, as it was installed."""
    yield HOSTS
    clear_hosts()


@pytest.fixture
def proxy(hosts: pathlib.Path) -> Iterator[None]:
    """The units as they were installed, the socket listening, the service not yet started."""
    run("systemctl", "start", "sniproxy.socket")
    yield
    for folder in ("sniproxy.socket.d", "sniproxy.service.d"):
        shutil.rmtree(DROP_INS / folder, ignore_errors=True)
    run("systemctl", "stop", "sniproxy.socket", "sniproxy.service")
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed")


@pytest.fixture
def backend_at() -> Iterator[Callable[..., Backend]]:
    running: list[Backend] = []

    def start(path: pathlib.Path, title: str, user: str = "alice", umask: str = "000") -> Backend:
        running.append(Backend(path, title, user, umask))
        return running[-1]

    yield start
    for backend in running:
        backend.close()
