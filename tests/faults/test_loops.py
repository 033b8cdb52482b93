"""Hosts that lead back to us: what one connection to such a host can take."""

import asyncio
import contextlib
import pathlib
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from sniproxy.dataplane.loops import SHARE
from tests.end_to_end.harness import TIMEOUT, Proxy, children, read_exactly
from tests.faults.harness import HELLO, ask, descriptors
from tests.hello import hello

LIMIT = 256
LOOP = hello("loop.example")
CLIENTS = 8

CIRCLES = 10 * (CLIENTS + 1)
"""Seconds until all circles have ended: each may have its ten after another has made room for it,
and how many do so depends on what else the machine has to do."""


def few() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


class Forwarder:
    """Passes what comes to a Unix socket on to TCP, in both directions, as socat does."""

    def __init__(self, path: pathlib.Path, address: tuple[str, int]) -> None:
        self._loop = asyncio.new_event_loop()
        self._path = path
        self._address = address
        self._ends: list[asyncio.StreamWriter] = []
        self._server = self._loop.run_until_complete(
            asyncio.start_unix_server(self._serve, str(path), backlog=1000)
        )
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.append(writer)
        back, forth = await asyncio.open_connection(*self._address)
        self._ends.append(forth)
        with contextlib.suppress(OSError, AttributeError):  # the latter where it was aborted
            await asyncio.gather(self._copy(reader, forth), self._copy(back, writer))
        for one in (writer, forth):
            one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            # Not by cancelling: who is connecting just now would lose its socket.
            while True:
                for one in self._ends:
                    one.transport.abort()
                await asyncio.sleep(0)
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                if not tasks:
                    break
                await asyncio.wait(tasks, timeout=0.1)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=["tcp", "unix"])
def looping(
    request: pytest.FixtureRequest, unharmed: Callable[..., Proxy], tmp_path: pathlib.Path
) -> Iterator[Proxy]:
    """A proxy with few descriptors and a host that leads back to it."""
    if request.param == "tcp":
        proxy = unharmed(preexec=few, patience=CIRCLES)
        path = proxy.directory("loop.example") / "tls-socket"
        forwarder = Forwarder(path, proxy.listening.getsockname())
        yield proxy
        forwarder.close()
        return
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    listening.listen(1000)
    proxy = unharmed(listening=listening, preexec=few, patience=CIRCLES)
    (proxy.directory("loop.example") / "tls-socket").symlink_to(tmp_path / "socket")
    yield proxy


def held(proxy: Proxy) -> int:
    """Give the most sockets that one of the processes that serve has."""
    pid = proxy.process.pid
    return max(descriptors(one)["socket"] for one in children(pid) or [pid])


def test_what_one_connection_takes(looping: Proxy) -> None:
    """A quarter of the descriptors of each worker and a few; meanwhile others are served."""
    most = held(looping) + 2 * (LIMIT // SHARE + 3)
    with looping.connect() as client:
        client.sendall(LOOP)
        highest = 0
        while "event=loop" not in looping.log:
            highest = max(highest, held(looping))
            ask(looping)
        assert LIMIT // SHARE < highest <= most
        assert read_exactly(client, 7) == b"\x15\3\3\0\2\2\x50"
    assert re.search(r"level=warning event=loop host=loop.example connections=32\n", looping.log)
    assert looping.log.count("event=loop") == 1


def test_several_take_no_more_than_one(looping: Proxy) -> None:
    """A browser comes with several connections at once, each with a random of its own."""
    clients = []
    most = held(looping) + 2 * (LIMIT // SHARE + 3) + 4 * CLIENTS
    for number in range(CLIENTS):
        clients.append(looping.connect())
        clients[-1].sendall(LOOP[:11] + bytes([number]) * 32 + LOOP[43:])
    for _ in range(50):
        ask(looping)
        assert held(looping) <= most
    for client in clients:
        client.close()


def test_equal_hellos_of_honest_clients(unharmed: Callable[..., Proxy]) -> None:
    """As a load generator sends them: more at a time than may go round at one host unanswered."""
    proxy = unharmed(preexec=few)
    clients = [proxy.connect() for _ in range(LIMIT // 4)]
    for client in clients:
        client.sendall(HELLO)
    for client in clients:
        assert read_exactly(client, 6) == b"served"
        client.close()
    assert "event=loop" not in proxy.log
