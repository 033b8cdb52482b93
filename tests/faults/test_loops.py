"""Hosts that lead back to us: what one connection to such a host can take."""

import asyncio
import contextlib
import pathlib
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


def few() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


class Forwarder:
    """Passes what comes to a Unix socket on to TCP, in both directions, as socat does."""

    def __init__(self, path: pathlib.Path, address: tuple[str, int]) -> None:
        self._loop = asyncio.new_event_loop()
        self._path = path
        self._address = address
        self._server = self._loop.run_until_complete(
            asyncio.start_unix_server(self._serve, str(path), backlog=1000)
        )
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(*self._address)
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(self._copy(reader, forth), self._copy(back, writer))
        finally:
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
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Looping:
    """A proxy with few descriptors and a host of its own that leads back to it."""

    def __init__(self, proxy: Proxy, host: str) -> None:
        self.proxy = proxy
        self.host = host
        self.wire = hello(host)
        self.before = self.held()

    def held(self) -> int:
        """Give the most sockets that one of the processes that serve has."""
        pid = self.proxy.process.pid
        return max(descriptors(one)["socket"] for one in children(pid) or [pid])

    def connect(self, number: int) -> socket.socket:
        """Connect a client, with a random of its own."""
        client = self.proxy.connect()
        client.sendall(self.wire[:11] + bytes([number]) * 32 + self.wire[43:])
        return client


@pytest.fixture
def looping(unharmed: Callable[..., Proxy], tmp_path: pathlib.Path) -> Iterator[list[Looping]]:
    """By a forwarder or as a link, with one process that serves and with several: all together, for
    who can't get in waits for ten seconds."""
    made, forwarders = [], []
    for workers in ("1", "2"):
        proxy = unharmed(preexec=few, SNIPROXY_WORKERS=workers)
        path = proxy.directory(f"tcp{workers}.example") / "tls-socket"
        forwarders.append(Forwarder(path, proxy.listening.getsockname()))
        made.append(Looping(proxy, f"tcp{workers}.example"))
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / workers))
        listening.listen(1000)
        proxy = unharmed(listening=listening, preexec=few, SNIPROXY_WORKERS=workers)
        path = proxy.directory(f"unix{workers}.example") / "tls-socket"
        path.symlink_to(tmp_path / workers)
        made.append(Looping(proxy, f"unix{workers}.example"))
    yield made
    for forwarder in forwarders:
        forwarder.close()


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_what_one_connection_takes(looping: list[Looping]) -> None:
    """A quarter of the descriptors of each worker and a few; meanwhile others are served."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(one.connect(1)) for one in looping]
        highest = [0] * len(looping)
        while not all("event=loop" in one.proxy.log for one in looping):
            for number, one in enumerate(looping):
                highest[number] = max(highest[number], one.held())
                ask(one.proxy)
        for one, client, most in zip(looping, clients, highest, strict=True):
            assert LIMIT // SHARE < most <= one.before + 2 * (LIMIT // SHARE + 3)
            assert read_exactly(client, 7) == b"\x15\3\3\0\2\2\x50"
            line = f" level=warning event=loop host={one.host} connections=32\n"
            assert one.proxy.log.count(line) == one.proxy.log.count("event=loop") == 1


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_several_take_no_more_than_one(looping: list[Looping]) -> None:
    """A browser comes with several connections at once."""
    with contextlib.ExitStack() as stack:
        for one in looping:
            for number in range(8):
                stack.enter_context(one.connect(number))
        for _ in range(50):
            for one in looping:
                ask(one.proxy)
                assert one.held() <= one.before + 2 * (LIMIT // SHARE + 3) + 4 * 8


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
