"""Memory fails at any point of what a connection or a stop goes through: one allocation after the
other, and several in a row. It costs that connection, and nothing else."""

import contextlib
import json
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.harness import (
    Backend,
    Proxy,
    Running,
    children,
    passed,
    read_exactly,
    reset,
)
from tests.faults.harness import eventually
from tests.faults.memory import Memory
from tests.hello import hello

HELLO = hello("a.example")
HASTY = """
import sys
from sniproxy.dataplane import connections, relay
connections.PATIENCE = 0.05
connections.FAREWELL_PATIENCE = 0.05
relay.HALF_CLOSED_IDLE = 0.05
relay.SEND_TIMEOUT = 0.05
relay._LEAVING_SWEEP = 0.02
from sniproxy.process import supervisor
supervisor.LONGEST_PAUSE = 0.1
from sniproxy.commands import sniproxy
sys.exit(sniproxy())
"""
"""sniproxy, but nobody has the time that the documents promise."""

PATIENCE = 5
"""Seconds that a client waits for an end, whatever became of its connection."""

ROWS = (1, 3)
"""How many allocations fail in a row."""

Scenario = Callable[["Scene"], None]


@pytest.fixture
def memory(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Memory]:
    if request.config.getoption("--sniproxy"):
        pytest.skip("not applicable: a static executable has no allocator that could be replaced")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: install gcc libc6-dev")
    made = Memory(tmp_path)
    yield made
    made.close()


class Scene:
    """A proxy, the backends that a scenario needs, and what the proxy holds at rest."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.backend = Backend(proxy.directory("a.example"))
        self.full = Backend(proxy.directory("full.example"), 0)
        for one in (self.backend, self.full):
            one.listening.settimeout(PATIENCE)
        self.questions = 0
        self.descriptors: list[int] = []

    def close(self) -> None:
        self.backend.close()
        self.full.close()

    def connect(self) -> socket.socket:
        client = self.proxy.connect()
        client.settimeout(PATIENCE)
        return client

    def accept(self, backend: Backend) -> socket.socket | None:
        """Accept where the connection has got through."""
        backend.listening.setblocking(False)
        try:
            return backend.accept()
        except BlockingIOError:
            return None
        finally:
            backend.listening.settimeout(PATIENCE)

    def works(self) -> None:
        """Be a client to whom nothing happens."""
        while not self.serves():
            pass
        self.backend.accepted.clear()

    def serves(self) -> bool:
        """Be served; False says that we were too slow for a hasty proxy, as on a busy machine."""
        slow = self.proxy.log.count("hello_too_slow")
        wire = HELLO[:11] + os.urandom(32) + HELLO[43:]
        with self.connect() as client:
            client.sendall(wire)
            while (stream := whoever_comes(self, client)) is not None:
                with stream:
                    stream.settimeout(PATIENCE)
                    # Or it is of a client before us, who is gone.
                    with contextlib.suppress(ConnectionError):
                        if stream.recv(1 << 16) == wire:
                            stream.sendall(b"served")
                            stream.close()
                            assert read_exactly(client, 6) == b"served"
                            assert client.recv(1) == b""
                            return True
            assert self.proxy.log.count("hello_too_slow") > slow, self.proxy.log[-1500:]
        return False

    def open(self) -> int:
        """Ask how many connections are open."""
        self.questions += 1
        said = self.proxy.log.count("event=totals")
        self.proxy.process.send_signal(signal.SIGUSR1)
        eventually(lambda: self.proxy.log.count("event=totals") > said, "no answer")
        return int(re.findall(r"event=totals open=(\d+)", self.proxy.log)[-1])

    def held(self) -> list[int]:
        """Count the descriptors of each process, but for the pipes that are kept for uploads."""
        counts = []
        for pid in (self.proxy.process.pid, *children(self.proxy.process.pid)):
            links = []
            for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    links.append(os.readlink(fd))
            counts.append(len([link for link in links if not link.startswith("pipe:")]))
        return counts

    def problem_and_log(self) -> str:
        return f"{self.problem()}\n{self.proxy.log[-2000:]}"

    def problem(self) -> str:
        if self.proxy.process.poll() is not None:
            return f"ended: {self.proxy.process.returncode}"
        held = self.held()
        if held != self.descriptors:
            return f"descriptors: {self.descriptors} became {held}"
        still = self.open()
        return f"{still} are open" if still else ""


def succeeds(act: Callable[[], object]) -> bool:
    try:
        act()
    except (AssertionError, OSError):
        return False
    return True


def ended(client: socket.socket) -> None:
    """Read to the end, however it comes: but it must."""
    with contextlib.suppress(ConnectionError):
        while client.recv(1 << 16):
            pass


def finish(client: socket.socket) -> None:
    """Send nothing more, unless it has ended already."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)


def hello_and_answer(scene: Scene) -> None:
    """A hello at once, an answer, the end."""
    with scene.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(HELLO)
        finish(client)
        # It comes to the backend, or to an end.
        stream = whoever_comes(scene, client)
        if stream is not None:
            with stream, contextlib.suppress(ConnectionError):
                while stream.recv(1 << 16):
                    pass
                stream.sendall(b"served")
        ended(client)


def whoever_comes(scene: Scene, client: socket.socket) -> socket.socket | None:
    """Give the backend's end of a connection, None where the client's has ended before."""
    poll = select.poll()
    poll.register(scene.backend.listening, select.POLLIN)
    poll.register(client, select.POLLIN)
    assert poll.poll(PATIENCE * 1000), "neither served nor ended"
    return scene.accept(scene.backend)


def hello_in_pieces(scene: Scene) -> None:
    with scene.connect() as client, contextlib.suppress(ConnectionError):
        for at in range(0, len(HELLO), 60):
            client.sendall(HELLO[at : at + 60])
            threading.Event().wait(0.001)
        stream = whoever_comes(scene, client)
        if stream is not None:
            stream.close()
        ended(client)


def too_slow(scene: Scene) -> None:
    """No hello: the sweep ends it."""
    with scene.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(HELLO[:30])
        ended(client)


def refused(scene: Scene) -> None:
    """An alert, and a farewell that the client leaves to its time-out."""
    with scene.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(hello("nobody.example"))
        ended(client)
        client.sendall(b"more")
        assert client.recv(1) == b""


def in_line(scene: Scene) -> None:
    """A full queue, those who wait for room in it, and room."""
    clients = {}
    poll = select.poll()
    for _ in range(4):
        client = scene.connect()
        clients[client.fileno()] = client
        poll.register(client, select.POLLIN)
        with contextlib.suppress(ConnectionError):
            client.sendall(hello("full.example"))
    poll.register(scene.full.listening, select.POLLIN)
    while clients:
        events = poll.poll(PATIENCE * 1000)
        assert events, f"{len(clients)} neither served nor ended"
        for fd, _ in events:
            if fd == scene.full.listening.fileno():
                stream = scene.accept(scene.full)
                if stream is not None:
                    stream.close()
            else:
                poll.unregister(fd)
                ended(clients[fd])
                clients.pop(fd).close()
    while (stream := scene.accept(scene.full)) is not None:
        stream.close()


def unread_answer(scene: Scene) -> None:
    """More than the client takes, half-closed, then taken."""
    with scene.connect() as client, contextlib.suppress(ConnectionError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(HELLO)
        stream = whoever_comes(scene, client)
        if stream is not None:
            with stream, contextlib.suppress(ConnectionError, BlockingIOError):
                finish(client)
                stream.setblocking(False)
                for _ in range(40):
                    stream.send(bytes(100_000))
        ended(client)


def fill(client: socket.socket) -> None:
    """Send as much as goes without waiting."""
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(30):
            client.send(bytes(300_000))


def upload(scene: Scene) -> None:
    """In bulk, through a pipe, to a backend that reads late."""
    with scene.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(HELLO)
        stream = whoever_comes(scene, client)
        if stream is None:
            return
        with stream, contextlib.suppress(ConnectionError):
            fill(client)
            client.settimeout(PATIENCE)
            finish(client)
            ended(stream)
        ended(client)


def given_up(scene: Scene) -> None:
    """A reset while bytes wait for the backend."""
    with scene.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(HELLO)
        stream = whoever_comes(scene, client)
        if stream is not None:
            with stream:
                fill(client)
                reset(client)
                ended(stream)


def half_closed(scene: Scene) -> None:
    """One direction has ended, the other says nothing: the sweep ends it."""
    with scene.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(HELLO)
        stream = whoever_comes(scene, client)
        if stream is not None:
            with stream:
                finish(client)
                ended(stream)
                ended(client)


def crowd(scene: Scene) -> None:
    """More than there are descriptors for, of three addresses: they are counted and dealt out,
    and there are evictions, a line for descriptors, a pause."""
    clients = []
    address = scene.proxy.listening.getsockname()
    for count in range(30):
        source = f"127.0.0.{2 + count // 12}", 0
        clients.append(socket.create_connection(address, PATIENCE, source))
        with contextlib.suppress(ConnectionError):
            clients[-1].sendall(HELLO[:30] if count % 2 else HELLO)
    threading.Event().wait(0.02)
    for client in clients:
        client.close()
    while (stream := scene.accept(scene.backend)) is not None:
        stream.close()


def question(scene: Scene) -> None:
    scene.proxy.process.send_signal(signal.SIGUSR1)
    threading.Event().wait(0.01)


SCENARIOS = [
    hello_and_answer,
    hello_in_pieces,
    too_slow,
    refused,
    in_line,
    unread_answer,
    upload,
    given_up,
    half_closed,
    crowd,
    question,
]


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, memory: Memory, tmp_path: pathlib.Path
) -> Iterator[Scene]:
    """Start a hasty sniproxy whose memory can fail."""
    (tmp_path / "hosts").mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        proxy = Proxy(
            [sys.executable, "-P", "-c", HASTY],
            tmp_path / "hosts",
            listening,
            {"SNIPROXY_WORKERS": "1", "SNIPROXY_LOG": "connections"} | memory.environment,
            few_descriptors if getattr(request, "param", None) else None,
        )
        made = Scene(proxy)
        try:
            made.works()
            eventually(lambda: made.open() == 0, "it is still open")
            made.descriptors = made.held()
            yield made
        finally:
            made.close()
            proxy.stop(signal.SIGTERM, signal.SIGTERM)


@pytest.mark.parametrize("width", ROWS)
@pytest.mark.parametrize(
    ("scenario", "scene"),
    [pytest.param(one, one is crowd, id=one.__name__) for one in SCENARIOS],
    indirect=["scene"],
)
def test_each_allocation(
    scene: Scene, memory: Memory, scenario: Scenario, width: int, full: bool
) -> None:
    scenario(scene)
    number, passed = 0, 0
    while passed < 3:
        # In the short form not each one where there are many.
        number += 1 if full else 1 + number // (4 if scenario is crowd else 20)
        memory.fail(number, width)
        try:
            scenario(scene)
        except (AssertionError, OSError) as error:
            error.add_note(f"allocation {number}:\n{scene.proxy.log[-2000:]}")
            raise
        passed = 0 if memory.recover() else passed + 1
        eventually(lambda: not scene.problem(), scene.problem_and_log)
        if scenario is crowd:  # of which some may still be in the queue of the listening socket
            eventually(lambda: succeeds(scene.works), "it works no more")
        else:
            scene.works()
    print(f"figures: {scenario.__name__}: {number} allocations")
    assert "Traceback" not in scene.proxy.log
    assert ("event=descriptors_dealt_out" in scene.proxy.log) == (scenario is crowd)


def wait_for_workers(pid: int, count: int) -> None:
    eventually(lambda: len(children(pid)) == count, "they are not forked")


def wait_for_the_end(proxy: Proxy, worker: int) -> None:
    pid = proxy.process.pid
    eventually(lambda: worker not in children(pid), lambda: f"{worker} is there:\n{proxy.log}")


@pytest.mark.parametrize("width", ROWS)
@pytest.mark.parametrize("workers", [1, 2])
def test_each_allocation_of_a_stop(
    memory: Memory, tmp_path: pathlib.Path, width: int, workers: int, full: bool
) -> None:
    """It ends within its time and in order, with a connection open that ends meanwhile."""
    (tmp_path / "hosts").mkdir()
    number, passed = 0, 0
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        while passed < 2:
            number += 1 if full else 2 + number // 4
            proxy = Proxy(
                [sys.executable, "-P", "-m", "sniproxy"],
                tmp_path / "hosts",
                listening,
                {"SNIPROXY_WORKERS": str(workers)} | memory.environment,
            )
            backend = Backend(proxy.directory(f"b{number}.example"))
            try:
                with proxy.connect() as client:
                    client.sendall(hello(f"b{number}.example"))
                    stream = backend.accept()
                    read_exactly(stream, 10)
                    pid = proxy.process.pid
                    wait_for_workers(pid, 0 if workers == 1 else workers)
                    memory.fail(number, width)
                    proxy.process.send_signal(signal.SIGTERM)
                stream.close()
                status = proxy.process.wait(PATIENCE)
                said, failed, where = proxy.log.partition("Traceback")
                # The interpreter's own end may fail, behind the last line or where that was lost.
                end = "event=exit" in said or (failed and "/sniproxy/" not in where)
                assert end or (status == 0 and not failed)
                assert "SIGKILL" not in said
            except (AssertionError, subprocess.TimeoutExpired) as error:
                error.add_note(f"allocation {number}:\n{proxy.log}")
                raise
            finally:
                passed = 0 if memory.recover() else passed + 1
                backend.close()
                if proxy.process.poll() is None:
                    proxy.process.kill()
                    proxy.process.wait(PATIENCE)
            proxy.log_path.unlink()


@pytest.mark.parametrize("width", ROWS)
def test_each_allocation_of_a_supervisor(
    memory: Memory, tmp_path: pathlib.Path, width: int, full: bool
) -> None:
    """A worker dies, others report and are asked: there are as many afterwards, and all answer."""
    (tmp_path / "hosts").mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        proxy = Proxy(
            [sys.executable, "-P", "-c", HASTY],
            tmp_path / "hosts",
            listening,
            {"SNIPROXY_WORKERS": "2"} | memory.environment,
        )
        scene = Scene(proxy)
        pid = proxy.process.pid
        try:
            eventually(lambda: len(children(pid)) == 2, "forks")
            scene.works()
            eventually(lambda: scene.open() == 0, "it is still open")
            held = len(os.listdir(f"/proc/{pid}/fd"))
            number, passed = 0, 0
            while passed < 2:
                number += 1 if full else 2 + number // 4
                before = children(pid)
                memory.fail(number, width)
                os.kill(before[0], signal.SIGKILL)
                wait_for_the_end(proxy, before[0])
                question(scene)
                eventually(lambda: len(children(pid)) == 2, lambda: proxy.log)
                passed = 0 if memory.recover() else passed + 1
                scene.works()
                eventually(lambda: scene.open() == 0, lambda: proxy.log)
                eventually(lambda: len(children(pid)) == 2, lambda: f"{number}:\n{proxy.log}")  # noqa: B023
                eventually(
                    lambda: len(os.listdir(f"/proc/{pid}/fd")) == held,
                    lambda: f"allocation {number}: {held}\n{proxy.log}",  # noqa: B023
                )
        finally:
            scene.close()
            proxy.stop(signal.SIGTERM, signal.SIGTERM)
    assert proxy.process.returncode == 0


class Visited:
    """A proxy with a status socket, and one connection that is open."""

    def __init__(self, folder: pathlib.Path, workers: int, environment: dict[str, str]) -> None:
        (folder / "hosts" / "a.example").mkdir(parents=True)
        self._folder = folder
        sockets = [(name, socket.socket(socket.AF_UNIX)) for name in ("status", "clients")]
        for name, one in sockets:
            one.bind(str(folder / name))
            one.listen(100)
        command = passed([sys.executable, "-P", "-c", HASTY], sockets)
        self._backend = Backend(folder / "hosts" / "a.example")
        self.running = Running(folder, *command, SNIPROXY_WORKERS=str(workers), **environment)
        for _, one in sockets:
            one.close()
        pid = self.running.process.pid
        eventually(lambda: "event=start" in self.running.log, "it does not start")
        wait_for_workers(pid, 0 if workers == 1 else workers)
        self._client = self._connect("clients")
        self._client.sendall(HELLO)
        self._stream = self._backend.accept()
        assert read_exactly(self._stream, len(HELLO)) == HELLO
        eventually(self.whole, lambda: self.running.log)
        self._pids = [pid, *children(pid)]
        self._held = self._descriptors()

    def _connect(self, name: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(PATIENCE)
        made.connect(str(self._folder / name))
        return made

    def visit(self, path: str) -> bytes:
        """Ask for a path; give what came up to the end, which must come."""
        said = b""
        with self._connect("status") as visitor, contextlib.suppress(ConnectionError):
            visitor.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            while data := visitor.recv(1 << 16):
                said += data
        return said

    def whole(self) -> bool:
        """Say whether everything is told of everybody."""
        said = self.visit("/status.json?connections=9").partition(b"\r\n\r\n")[2]
        try:
            shown = json.loads(said)
        except ValueError:
            return False
        return len(shown["open_connections"]) == 1 and all(w["answered"] for w in shown["workers"])

    def _descriptors(self) -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in self._pids]

    def works(self) -> bool:
        """Say whether nobody has noticed anything, and nothing is left."""
        self._client.sendall(b"still")
        assert read_exactly(self._stream, 5) == b"still"
        return self.whole() and self._descriptors() == self._held

    def close(self) -> None:
        for one in (self._client, self._stream, self._backend):
            one.close()
        self.running.process.send_signal(signal.SIGTERM)
        assert self.running.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("width", ROWS)
@pytest.mark.parametrize("workers", [1, 2])
def test_each_allocation_of_an_answer(
    memory: Memory, tmp_path: pathlib.Path, width: int, workers: int, full: bool
) -> None:
    """Who asks for the status has it all, or an end before; who is relayed notices nothing."""
    visited = Visited(tmp_path, workers, memory.environment)
    number, passed_ = 0, 0
    try:
        while passed_ < 2:
            number += 1 if full else 1 + number // 4
            memory.fail(number, width)
            for path in ("/metrics", "/status.json?connections=9"):
                said = visited.visit(path)
                assert said == b"" or said.startswith(b"HTTP/1.1 200 OK\r\n"), said
            passed_ = 0 if memory.recover() else passed_ + 1
            eventually(visited.works, "it works no more")
    except (AssertionError, OSError) as error:
        error.add_note(f"allocation {number}:\n{visited.running.log[-3000:]}")
        raise
    finally:
        visited.close()
    print(f"figures: {workers} workers: {number} allocations")
    assert "Traceback" not in visited.running.log
