"""What the program asks of the system, and what it must not ask."""

import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Proxy,
    directory_name,
    read_all,
    read_exactly,
    wait_until,
)
from tests.hello import hello

HELLO = hello("a.example")
Start = Callable[..., Proxy]
Make = Callable[..., Backend]

pytestmark = pytest.mark.parametrize("workers", ["1"], indirect=True)


def alert(number: int) -> bytes:
    return bytes([0x15, 3, 3, 0, 2, 2, number])


def served(proxy: Proxy, backend: Backend) -> bool:
    with proxy.connect() as client:
        client.sendall(HELLO)
        stream = backend.accept()
        assert read_exactly(stream, len(HELLO)) == HELLO
        stream.sendall(b"served")
        stream.close()
        return read_all(client) == b"served"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: install strace")
def test_what_it_asks_of_the_kernel(
    command: list[str],
    hashed: bool,
    workers: str,
    backend_of: Make,
    tmp_path: pathlib.Path,
) -> None:
    """Nothing in the hosts directory is opened, and nothing at all once it serves; the listening
    socket is neither shut down nor told to listen again; no connection costs options."""
    hosts, trace = tmp_path / "hosts", tmp_path / "trace"
    hosts.mkdir()
    calls = "trace=listen,shutdown,setsockopt,open,openat,openat2,execve,chdir,accept,accept4"
    tracer = ["strace", "-D", "-f", "-yy", "-s", "300", "-o", str(trace), "-e", calls]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = Proxy(
            [*tracer, *command],
            hosts,
            listening,
            {"SNIPROXY_WORKERS": workers, "SNIPROXY_LOG": "connections"},
        )
        proxy.hashed = hashed
        wait_until(lambda: "event=start" in proxy.log)
        directory = proxy.directory("a.example")
        (directory / "send-proxy-v1").touch()
        backend = backend_of(directory)
        with proxy.connect() as client:
            client.sendall(HELLO)
            stream = backend.accept()
            stream.sendall(b"x")
            stream.close()
            assert read_all(client) == b"x"
        assert proxy.ask(b"GET / HTTP/1.1") == alert(10)
        assert proxy.ask(hello("no.example")) == alert(112)
        assert proxy.stop(signal.SIGTERM) == 0
    wait_until(lambda: "+++ exited" in trace.read_text(errors="replace"))
    lines = trace.read_text(errors="replace").splitlines()

    def of(name: str) -> list[str]:
        return [line for line in lines if re.search(rf"\b{name}\(", line)]

    assert len(of("accept4?")) >= 3
    assert of("listen") == []
    # Connected sockets are shown with both their ends.
    assert of("shutdown")
    assert all("->" in line for line in of("shutdown"))
    assert of("setsockopt")
    assert not any("->" in line.split(",")[0] for line in of("setsockopt"))
    opened = [re.findall(r'"((?:[^"\\]|\\.)*)"', line)[0] for line in of("open(?:at2?)?")]
    assert "." in opened
    # Once connections come, nothing is: no module, no code page, no time zone for the log.
    first = next(at for at, line in enumerate(lines) if re.search(r"\baccept4?\(", line))
    lines = lines[first:]
    assert of("open(?:at2?)?") == []
    assert of("execve") == []
    inside = [path for path in opened if str(hosts) in path or not path.startswith("/")]
    assert set(inside) - {"."} == set()


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_ask_for_a_header_are_never_opened(
    start: Start, backend_of: Make, version: int
) -> None:
    """A FIFO that nobody may read: to open it would fail, or wait for ever."""
    proxy = start()
    directory = proxy.directory("a.example")
    os.mkfifo(directory / f"send-proxy-v{version}", 0)
    backend = backend_of(directory)
    with proxy.connect() as client:
        client.sendall(HELLO)
        start_of_header = b"PROXY TCP4 " if version == 1 else b"\r\n\r\n\0\r\nQUIT\n"
        stream = backend.accept()
        assert read_exactly(stream, len(start_of_header)) == start_of_header
        assert (directory / f"send-proxy-v{version}").is_fifo()


def test_the_hosts_directory_is_the_one_that_was_opened(start: Start, backend_of: Make) -> None:
    """It may be renamed while the proxy runs, and another put in its place."""
    proxy = start()
    short = backend_of(proxy.directory("a.example"))
    long_name = ".".join(["b" * 60] * 4)
    long = backend_of(proxy.directory(long_name))
    assert served(proxy, short)
    renamed = proxy.hosts.with_name("renamed")
    proxy.hosts.rename(renamed)
    proxy.hosts.mkdir()
    decoy = backend_of(proxy.directory("a.example"))
    for _ in range(2):
        assert served(proxy, short)
        with proxy.connect() as client:
            client.sendall(hello(long_name))
            stream = long.accept()
            assert read_exactly(stream, len(hello(long_name))) == hello(long_name)
    decoy.listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        decoy.listening.accept()


def test_hosts_come_and_go(start: Start, backend_of: Make) -> None:
    proxy = start()
    assert proxy.ask(HELLO) == alert(112)
    for _ in range(2):
        directory = proxy.directory("a.example")
        assert proxy.ask(HELLO) == alert(112)
        backend = backend_of(directory)
        assert served(proxy, backend)
        backend.close()
        assert proxy.ask(HELLO) == alert(112)
        shutil.rmtree(directory)
        assert proxy.ask(HELLO) == alert(112)


def test_odd_places(start: Start, backend_of: Make, tmp_path: pathlib.Path) -> None:
    """What can stand in a host's place leads to an answer, and never to an end."""
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))

    def place(name: str) -> pathlib.Path:
        return proxy.hosts / directory_name(proxy.hashed, name)

    place("long-link.example").symlink_to("x" * 300)
    place("circle.example").symlink_to(place("circle.example").name)
    place("dangling.example").symlink_to("nowhere")
    place("file.example").touch()
    os.mkfifo(place("fifo.example"), 0)
    place("through-file.example").symlink_to("file.example/inside")
    for name in ("text.example", "folder.example", "pipe.example"):
        place(name).mkdir()
    (place("text.example") / "tls-socket").touch()
    (place("folder.example") / "tls-socket").mkdir()
    os.mkfifo(place("pipe.example") / "tls-socket")
    for name in (
        "long-link.example",
        "circle.example",
        "dangling.example",
        "file.example",
        "fifo.example",
        "through-file.example",
        "text.example",
        "folder.example",
        "pipe.example",
    ):
        assert proxy.ask(hello(name)) == alert(112), name
    assert served(proxy, backend)


def test_the_soft_limit_is_raised_to_the_hard_one(start: Start, backend_of: Make) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))

    proxy = start(preexec=lower)
    assert served(proxy, backend_of(proxy.directory("a.example")))
    limits = pathlib.Path(f"/proc/{proxy.process.pid}/limits").read_text()
    assert re.search(r"^Max open files +512 +512 ", limits, re.MULTILINE)
    assert "descriptors=512" in proxy.log


def backlog_of(listening: socket.socket) -> int:
    """The greatest length of the queue: tcpi_sacked of a listening socket, tcp(7)."""
    information = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    longest: int = struct.unpack_from("=28xI", information)[0]
    return longest


def test_the_socket_stays_its_manager_s(start: Start, backend_of: Make) -> None:
    """Two options are set on it for what is accepted; the length of its queue is not touched."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=7)
    before = backlog_of(listening)
    assert before == 7
    proxy = start(listening)
    backend = backend_of(proxy.directory("a.example"))
    assert served(proxy, backend)
    assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert backlog_of(listening) == before
    assert proxy.stop(signal.SIGTERM) == 0
    # It has not been shut down: the next copy serves it.
    assert served(start(listening), backend)


@pytest.mark.parametrize("blocking", [True, False])
def test_two_programs_on_one_socket(start: Start, backend_of: Make, blocking: bool) -> None:
    """Each may find the queue empty that it was told of; s6 gives a non-blocking socket."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=100)
    listening.setblocking(blocking)
    proxies = [start(listening), start(listening)]
    for proxy in proxies:
        wait_until(lambda proxy=proxy: "event=start" in proxy.log)  # type: ignore[misc]
    backend = backend_of(proxies[0].directory("a.example"))
    for _ in range(40):
        assert served(proxies[0], backend)
    assert all(proxy.stop(signal.SIGTERM) == 0 for proxy in proxies)
    accepted = [int(re.findall(r"accepted=(\d+)", proxy.log)[-1]) for proxy in proxies]
    assert sum(accepted) == 40


def test_a_manager_that_is_not_there(
    start: Start, backend_of: Make, tmp_path: pathlib.Path
) -> None:
    proxy = start(NOTIFY_SOCKET=str(tmp_path / "nobody"))
    assert served(proxy, backend_of(proxy.directory("a.example")))
    assert proxy.stop(signal.SIGTERM) == 0


def test_a_reader_of_the_log_that_went_away_does_not_kill(start: Start, backend_of: Make) -> None:
    """Where SIGPIPE has its default action, as inetd and shells leave it."""
    read, write = os.pipe()

    def as_inetd_does() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.dup2(write, 2)

    proxy = start(preexec=as_inetd_does, SNIPROXY_LOG="connections")
    os.close(write)
    assert os.read(read, 9999)
    os.close(read)
    backend = backend_of(proxy.directory("a.example"))
    for _ in range(3):
        assert served(proxy, backend)
    assert proxy.stop(signal.SIGTERM) == 0


def test_the_alert_comes_before_the_end(start: Start) -> None:
    """Alert, end of the stream, and a close without a reset, however much the client had sent."""
    proxy = start()
    for more in (0, 1, 60_000):
        with proxy.connect() as client:
            client.sendall(b"x" + bytes(more))
            assert read_all(client) == alert(10)
            # What the client sends after the end is no reason for a reset either.
            client.settimeout(TIMEOUT)
            client.sendall(bytes(100))
            client.shutdown(socket.SHUT_WR)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
