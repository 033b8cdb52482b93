"""Fixtures of the attacks: the proxy of the end-to-end tests, and how it must be after each."""

import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.conftest import backend_of, command, hashed, proxy, start, workers
from tests.end_to_end.harness import Proxy
from tests.faults.harness import (
    HOST,
    PATIENCE,
    Backend,
    Holdings,
    ask,
    at_rest,
    many_descriptors,
    nothing_left,
)

__all__ = ["backend_of", "command", "hashed", "proxy", "start", "workers"]


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Say whether the long forms are wanted."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session", autouse=True)
def _descriptors() -> None:
    many_descriptors()


@pytest.fixture
def serve() -> Iterator[Callable[..., Backend]]:
    """Start a backend process; it is killed at the end."""
    running: list[Backend] = []

    def begin(directory: pathlib.Path, *options: str) -> Backend:
        running.append(Backend(directory, *options))
        return running[-1]

    yield begin
    for backend in running:
        backend.close()


@pytest.fixture
def unharmed(
    start: Callable[..., Proxy], serve: Callable[..., Backend]
) -> Iterator[Callable[..., Proxy]]:
    """Start a proxy with a backend for HOST; after the test it must serve as before, and hold no
    descriptor, process or memory that it did not hold then."""
    watched: list[tuple[Proxy, Holdings, int, float]] = []

    def begin(*, growth: int = 8 << 20, patience: float = PATIENCE, **options: object) -> Proxy:
        proxy = start(**options)
        serve(proxy.directory(HOST))
        # Everything that is made once has been made when a few have been served.
        for _ in range(10):
            ask(proxy)
        watched.append((proxy, at_rest(proxy), growth, patience))
        return proxy

    yield begin
    for one, before, growth, patience in watched:
        assert one.process.poll() is None
        ask(one)
        nothing_left(one, before, growth, patience)
