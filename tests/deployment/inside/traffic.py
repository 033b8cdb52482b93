"""Connections through the proxy in every state that one can be in, each byte compared at both ends.

Client and backend are in this process, and each knows what is to come: a stream's bytes follow from
the connection's number, the direction and the place. Long connections go on until ``finish``;
``across`` has those besides that can be in their state for seconds only.
"""

import asyncio
import contextlib
import dataclasses
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any

from support import (
    HOSTS,
    TIMEOUT,
    eventually,
    first_message,
    make_host,
    served_connections,
)

ADDRESS = "127.0.0.1", 443

FEW = {
    "ping": 4,
    "stream": 4,
    "slow_backend": 3,
    "slow_client": 3,
    "client_ended": 3,
    "backend_ended": 3,
    "idle": 4,
}
"""Long connections by kind: see the functions of the same names."""

_PERIOD = 65521
_PATTERN = random.Random(1).randbytes(_PERIOD) * 6
_MOST = 256 * 1024
_NUMBER = struct.Struct("!I")
_PAUSES = (0, 0.02, 0.3)


class Wrong(Exception):  # noqa: N818 - what has come is
    """Another byte has come than was sent, or an end that nobody has asked for."""


@dataclasses.dataclass(slots=True)
class End:
    """One end of a connection: what it sends, and what must come to it."""

    stream: socket.socket
    number: int
    of_client: bool
    sent: int = 0
    received: int = 0

    async def send(self, size: int) -> None:
        data = self._pattern(self.of_client, self.sent, size)
        self.sent += size
        await asyncio.get_running_loop().sock_sendall(self.stream, data)

    async def receive(self) -> bool:
        """Receive something; say whether there was something, and not the end."""
        data = await asyncio.get_running_loop().sock_recv(self.stream, _MOST)
        if data != self._pattern(not self.of_client, self.received, len(data)):
            raise Wrong(f"bytes from {self.received} on")
        self.received += len(data)
        return bool(data)

    async def receive_all(self, pause: Callable[[], float] = lambda: 0) -> None:
        """Receive to the end, with pauses."""
        while await self.receive():
            if seconds := pause():
                await asyncio.sleep(seconds)

    async def echo(self, size: int) -> None:
        """Send, and wait for as much to come back."""
        aim = self.received + size
        await self.send(size)
        while self.received < aim:
            if not await self.receive():
                raise Wrong("the end")

    def end(self) -> None:
        self.stream.shutdown(socket.SHUT_WR)

    def _pattern(self, of_client: bool, at: int, size: int) -> bytes:
        start = (31 * self.number + 1009 * of_client + at) % _PERIOD
        return _PATTERN[start : start + size]


class Traffic:
    """Opens ``counts`` connections of each kind; leave the context to end them in order, and to
    have them compared."""

    def __init__(self, counts: Mapping[str, int] = FEW) -> None:
        self.waits: list[tuple[float, float]] = []
        """Of each ping: when it was sent (monotonic clock), and the seconds until it was back."""
        self.lost: list[str] = []
        """Connections that have not come to their end as they should, and why."""
        self.size = sum(counts.values())
        self._counts = counts
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._ending = asyncio.Event()
        self._transferred = 0
        self._pairs: list[tuple[str, int, tuple[End, End]]] = []
        self._arrived: dict[tuple[str, int], asyncio.Future[socket.socket]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[socket.socket] = []
        self._hellos: dict[str, bytes] = {}

    def __enter__(self) -> "Traffic":
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            lost = self.finish()
            assert error is not None or not lost, lost
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def finish(self) -> list[str]:
        """End all connections, each from its own side; give those that were lost."""
        self._do(self._finish())
        return self.lost

    def across(self, action: Callable[[], object]) -> None:
        """Act while a hello is half there, and a client is in line before a full backend; both
        have ten seconds. They must go on."""
        go_on = asyncio.Event()
        stages = [self._half_a_hello(go_on), self._in_line(go_on)]
        tasks = self._do(self._begin(stages))
        try:
            action()
        finally:
            self._loop.call_soon_threadsafe(go_on.set)
        self._do(self._wait(tasks))

    def longest_wait(self, since: float) -> float:
        """Give the seconds of the longest ping that was under way after that time."""
        return max(wait for sent, wait in self.waits if sent + wait >= since)

    def ping_after(self, since: float) -> None:
        """Wait until a ping that was sent after that time is back."""
        eventually("a ping", lambda: self.waits and self.waits[-1][0] > since)

    @property
    def transferred(self) -> int:
        """Bytes that have been received and compared, at both ends."""
        return self._transferred + sum(one.received for *_, ends in self._pairs for one in ends)

    # Where asyncio runs.

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT)

    async def _open(self) -> None:
        for kind, count in self._counts.items():
            self._listen(kind, 4096)
            for number in range(count):
                await self._pair(kind, number)

    async def _pair(self, kind: str, number: int) -> None:
        """Connect a client with its backend, and have both do what their kind does."""
        name = f"{kind.replace('_', '-')}.promise.example"
        client = await self._connect()
        await self._loop.sock_sendall(client, self._hello(name) + _NUMBER.pack(number))
        backend = await self._arrival(kind, number)
        ends = End(client, number, True), End(backend, number, False)
        talk: Callable[..., tuple[Awaitable[None], Awaitable[None]]] = getattr(self, kind)
        self._pairs.append((kind, number, ends))
        for end, work in zip(ends, talk(*ends), strict=True):
            side = "client" if end.of_client else "backend"
            self._tasks.append(self._loop.create_task(self._watched(end, f"{kind} {side}", work)))

    async def _watched(self, end: End, what: str, work: Awaitable[None]) -> None:
        """Do what an end does to the end of the stream, and note what goes wrong."""
        try:
            await work
        except (OSError, Wrong) as error:
            self.lost.append(f"{what} {end.number}: {error!r} after {end.sent}, {end.received}")
        finally:
            end.stream.close()

    async def _finish(self) -> None:
        self._ending.set()
        if self._tasks:
            _, hanging = await asyncio.wait(self._tasks, timeout=TIMEOUT / 2)
            if hanging:
                self.lost.append(f"{len(hanging)} ends never came to an end")
            for task in hanging:
                task.cancel()
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        for kind, number, (client, backend) in self._pairs:
            if (client.sent, backend.sent) != (backend.received, client.received):
                self.lost.append(f"{kind} client {number}: {client}, {backend}")
        self._transferred = self.transferred
        self._pairs.clear()
        while self._listeners:
            listening = self._listeners.pop()
            self._loop.remove_reader(listening)
            listening.close()

    async def _begin(
        self, stages: list[Coroutine[Any, Any, Callable[[], Awaitable[None]]]]
    ) -> list[asyncio.Task[None]]:
        """Bring each to its state; give what goes on from there."""
        return [self._loop.create_task((await stage)()) for stage in stages]  # type: ignore[arg-type]

    async def _wait(self, tasks: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*tasks)

    # Backends.

    def _listen(self, kind: str, backlog: int) -> socket.socket:
        path = make_host(f"{kind.replace('_', '-')}.promise.example") / "tls-socket"
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen(backlog)
        if backlog:
            self._listeners.append(listening)
            self._loop.add_reader(listening, self._accept, kind, listening)
        return listening

    def _accept(self, kind: str, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                stream, _ = listening.accept()
                stream.setblocking(False)
                self._loop.create_task(self._greet(kind, stream))

    async def _greet(self, kind: str, stream: socket.socket) -> None:
        """Read up to the number behind the hello."""
        hello = self._hello(f"{kind.replace('_', '-')}.promise.example")
        expected = len(hello) + _NUMBER.size
        data = b""
        while len(data) < expected:
            some = await self._loop.sock_recv(stream, expected - len(data))
            if not some:
                stream.close()
                return
            data += some
        assert data.startswith(hello)
        (number,) = _NUMBER.unpack(data[len(hello) :])
        self._future(kind, number).set_result(stream)

    async def _arrival(self, kind: str, number: int) -> socket.socket:
        return await self._future(kind, number)

    def _future(self, kind: str, number: int) -> "asyncio.Future[socket.socket]":
        return self._arrived.setdefault((kind, number), self._loop.create_future())

    def _hello(self, name: str) -> bytes:
        if name not in self._hellos:
            self._hellos[name] = first_message(name)
        return self._hellos[name]

    async def _connect(self) -> socket.socket:
        stream = socket.socket()
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._loop.sock_connect(stream, ADDRESS)
        return stream

    # Long connections, by kind: what the client does, what the backend does.

    def ping(self, client: End, backend: End) -> tuple[Awaitable[None], Awaitable[None]]:
        """A small question and its answer, again and again."""

        async def ask() -> None:
            while not self._ending.is_set():
                sent = time.monotonic()
                await client.echo(16)
                self.waits.append((sent, time.monotonic() - sent))
                await asyncio.sleep(0.005)
            client.end()
            await client.receive_all()

        return ask(), self._answer(backend)

    def idle(self, client: End, backend: End) -> tuple[Awaitable[None], Awaitable[None]]:
        """Nothing but a few words at the start and at the end."""

        async def ask() -> None:
            await client.echo(100)
            await self._ending.wait()
            await client.echo(100)
            client.end()
            await client.receive_all()

        return ask(), self._answer(backend)

    async def _answer(self, backend: End) -> None:
        while True:
            before = backend.received
            if not await backend.receive():
                break
            await backend.send(backend.received - before)
        backend.end()

    def stream(self, client: End, backend: End) -> tuple[Awaitable[None], Awaitable[None]]:
        """Both send all the time, and read at once."""
        return self._both(client, backend)

    def slow_backend(self, client: End, backend: End) -> tuple[Awaitable[None], Awaitable[None]]:
        """The client sends as much as is taken, and the backend reads now and then."""
        return self._both(client, backend, client_pause=0, read_up=self._now_and_then)

    def slow_client(self, client: End, backend: End) -> tuple[Awaitable[None], Awaitable[None]]:
        """The other way round."""
        return self._both(client, backend, backend_pause=0, read_down=self._now_and_then)

    def _now_and_then(self) -> float:
        return 0 if self._ending.is_set() else random.choice(_PAUSES)

    def _both(
        self,
        client: End,
        backend: End,
        client_pause: float = 0.01,
        backend_pause: float = 0.01,
        read_up: Callable[[], float] = lambda: 0,
        read_down: Callable[[], float] = lambda: 0,
    ) -> tuple[Awaitable[None], Awaitable[None]]:
        async def of_client() -> None:
            await asyncio.gather(self._source(client, client_pause), client.receive_all(read_down))

        async def of_backend() -> None:
            await asyncio.gather(self._source(backend, backend_pause), backend.receive_all(read_up))

        return of_client(), of_backend()

    async def _source(self, end: End, pause: float) -> None:
        """Send until all is to end."""
        while not self._ending.is_set():
            await end.send(20_000)
            await asyncio.sleep(pause)
        end.end()

    def client_ended(self, client: End, backend: End) -> tuple[Awaitable[None], Awaitable[None]]:
        """The client has said all, and the backend goes on."""

        async def ask() -> None:
            await client.send(5000)
            client.end()
            await client.receive_all()

        async def answer() -> None:
            await backend.receive_all()
            await self._source(backend, 0.01)

        return ask(), answer()

    def backend_ended(self, client: End, backend: End) -> tuple[Awaitable[None], Awaitable[None]]:
        """The other way round."""

        async def ask() -> None:
            await client.receive_all()
            await self._source(client, 0.01)

        async def answer() -> None:
            await backend.send(5000)
            backend.end()
            await backend.receive_all()

        return ask(), answer()

    # States that do not last: bring about; go on when told.

    async def _half_a_hello(self, go_on: asyncio.Event) -> Callable[[], Awaitable[None]]:
        name = "half.promise.example"
        listening = self._listen("half", 0)
        client = await self._connect()
        hello = self._hello(name)
        await self._loop.sock_sendall(client, hello[: len(hello) // 2])
        await self._accepted(client)

        async def rest() -> None:
            await go_on.wait()
            await self._loop.sock_sendall(client, hello[len(hello) // 2 :])
            await self._served(listening, client, hello)

        return rest

    async def _in_line(self, go_on: asyncio.Event) -> Callable[[], Awaitable[None]]:
        name = "line.promise.example"
        listening = self._listen("line", 0)
        fillers = []
        with contextlib.suppress(BlockingIOError):
            while True:
                filler = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                fillers.append(filler)
                filler.connect(str(HOSTS / name / "tls-socket"))
        hello = self._hello(name)
        client = await self._connect()
        await self._loop.sock_sendall(client, hello)
        await self._accepted(client)

        async def rest() -> None:
            await go_on.wait()
            for filler in fillers:
                filler.close()
            await self._served(listening, client, hello)

        return rest

    async def _accepted(self, client: socket.socket) -> None:
        """Wait until the proxy has a connection: what is in the queue is handed over by nobody."""
        port = f":{client.getsockname()[1]:04X}"
        while not any(row[2].endswith(port) and row[9] != "0" for row in served_connections()):
            await asyncio.sleep(0.01)

    async def _served(self, listening: socket.socket, client: socket.socket, hello: bytes) -> None:
        """See that a client's hello arrives, whoever stands before it, and an answer."""
        with listening, client:
            answering = self._loop.create_task(self._read_all(client))
            data = b""
            while not data:
                accepting = self._loop.create_task(self._loop.sock_accept(listening))
                await asyncio.wait({accepting, answering}, return_when=asyncio.FIRST_COMPLETED)
                if not accepting.done():
                    accepting.cancel()
                    raise Wrong(f"the client was told {answering.result()!r}")
                backend, _ = accepting.result()
                with backend:
                    while len(data) < len(hello):
                        some = await self._loop.sock_recv(backend, len(hello) - len(data))
                        if not some:
                            break
                        data += some
                    if data:
                        assert data == hello
                        await self._loop.sock_sendall(backend, b"answer")
            assert await answering == b"answer"

    async def _read_all(self, stream: socket.socket) -> bytes:
        data = b""
        while some := await self._loop.sock_recv(stream, 100):
            data += some
        return data
