"""Training: the load that the interpreter's profile is taken from, which is our own work.

The proxy runs from source on an interpreter that counts, and relays what it meets in life: many
short connections one after the other, hellos in pieces, refusals, longer transfers both ways, many
small exchanges on one open connection and on many. Then short connections whose look-ups are
isolated, and those look-ups; the parser alone, and the start of each command. All of it is bounded.
"""

import contextlib
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .failure import BuildFailure

SHORT = 6000
"""Connections of a hello, a small reply, an end: what a proxy does most."""

ISOLATED = 2000
"""Such connections whose look-ups are isolated."""

PIECES = 300
REFUSED = 300
MIDDLE = 200
BULK = 6
PARALLEL = 64
ROUNDS = 40
TRIPS = 6000
"""Exchanges on a connection that is alone: after each the proxy waits."""

STARTS = 20

BULK_BYTES = 16 << 20
MIDDLE_BYTES = 200_000

PATIENCE = 600.0
"""Seconds for any one step, which an emulated interpreter may need: a load that hangs ends as an
error."""

HOSTS = {
    "plain.example": (),
    "one.example": ("send-proxy-v1",),
    "two.example": ("send-proxy-v2",),
}

PARSE = """
import sys
from sniproxy.parser.client_hello import ClientHelloParser, usual_host_name
hello = bytes.fromhex(sys.argv[1])
buffer = bytearray(hello + bytes(1 << 18))
for _ in range(5000):
    assert usual_host_name(buffer, len(hello))
for _ in range(500):
    assert ClientHelloParser().feed(hello)
for _ in range(500):
    parser = ClientHelloParser()
    for byte in hello:
        if parser.feed(bytes((byte,))):
            break
"""


RESOLVE = """
import os, socket, sys
from sniproxy.process.board import Board
from sniproxy.process.resolving import GO, Resolver
from sniproxy.resolver.answer import LONGEST, NOBODY, TOGETHER, ask
from sniproxy.resolver.hosts import Hosts
pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
(asking, asked), (answered, answers), (warden, life) = pairs
board = Board()
resolver = Resolver(Hosts(), board, board.place(0), asked, [answers], life)
asked.setblocking(False)
hosts = [*[sys.argv[1]] * 16, *sys.argv[2:], "nobody.example"]
questions = [((number, NOBODY, 0), host) for number, host in enumerate(hosts)]
messages = [questions[at : at + TOGETHER] for at in range(0, len(questions), TOGETHER)]
for _ in range(100):
    for number, message in enumerate(messages):
        asking.send(ask(number, 0, message))
    warden.send(GO)
    try:
        resolver.run()
    except BlockingIOError:
        pass  # there are no more
    for _ in messages:
        for descriptor in socket.recv_fds(answered, LONGEST, TOGETHER)[1]:
            os.close(descriptor)
"""


def client_hello(host: str) -> bytes:
    """Make a TLS 1.3 ClientHello (RFC 8446 section 4.1.2) of some 330 bytes that asks for
    ``host``, in one record."""
    name = host.encode("ascii")
    entry = struct.pack("!BH", 0, len(name)) + name
    extensions = (
        (10, b"\x00\x04\x00\x1d\x00\x17"),
        (13, b"\x00\x06\x04\x03\x08\x04\x04\x01"),
        (16, b"\x00\x0c\x02h2\x08http/1.1"),
        (0, struct.pack("!H", len(entry)) + entry),
        (43, b"\x04\x03\x04\x03\x03"),
        (51, b"\x00\x24\x00\x1d\x00\x20" + bytes(32)),
        (21, bytes(120)),
    )
    block = b"".join(struct.pack("!HH", kind, len(data)) + data for kind, data in extensions)
    body = (
        b"\x03\x03"
        + bytes(32)
        + b"\x20"
        + bytes(32)
        + b"\x00\x06\x13\x01\x13\x02\x13\x03"
        + b"\x01\x00"
        + struct.pack("!H", len(block))
        + block
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def train(python: list[str], packages: Path) -> None:
    """Run the whole load on what ``python`` starts, with the package below the folder
    ``packages``."""
    command = [*python, "-S", "-B"]
    environment = {
        "PYTHONPATH": str(packages),
        "SNIPROXY_LOG": "error",
        "SNIPROXY_WORKERS": "1",
        "PATH": "/usr/bin:/bin",
    }
    with tempfile.TemporaryDirectory(prefix="sniproxy-training-") as folder:
        hosts = Path(folder)
        _lay_out(hosts)
        proxy = [*command, "-m", "sniproxy"]
        with _backends(hosts):
            with _proxy(proxy, environment, hosts) as address:
                _load(address)
            with _proxy(proxy, environment | {"SNIPROXY_ISOLATE": "1"}, hosts) as address:
                _short(address, ISOLATED)
            # Processes that look up leave no profile: they end at once.
            _run([*command, "-c", RESOLVE, *HOSTS], environment, hosts)
    hello = client_hello("plain.example").hex()
    _run([*command, "-c", PARSE, hello], environment)
    for _ in range(STARTS):
        _run([*command, "-m", "sniproxy", "--version"], environment)
        _run([*command, "-c", "import sniproxy.process.service"], environment)


def serve_once(command: list[str], environment: dict[str, str]) -> None:
    """Run the proxy that ``command`` starts through a short connection of each kind, to its
    orderly end."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-once-") as folder:
        hosts = Path(folder)
        _lay_out(hosts)
        with _backends(hosts), _proxy(command, environment, hosts) as address:
            for host in HOSTS:
                _exchange(address, [client_hello(host), struct.pack("!II", 0, 100)], 100)
            _exchange(address, [client_hello("nobody.example")], 7)
            _exchange(address, [b"GET / HTTP/1.1\r\n\r\n"], 7)
            upload = struct.pack("!II", 1 << 20, 10) + bytes(1 << 20)
            _exchange(address, [client_hello("plain.example"), upload], 10)


def _lay_out(hosts: Path) -> None:
    for host, files in HOSTS.items():
        (hosts / host).mkdir()
        for file in files:
            (hosts / host / file).touch()


def _run(command: list[str], environment: dict[str, str], folder: Path | None = None) -> None:
    done = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise BuildFailure(f"the training failed: {command[0]} {command[3:]}:\n{done.stderr}")


@contextlib.contextmanager
def _proxy(
    command: list[str], environment: dict[str, str], hosts: Path
) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        process = subprocess.Popen(command, env=environment, stdin=listening.fileno(), cwd=hosts)
        try:
            yield listening.getsockname()
            # The orderly end: an interpreter that is killed writes no profile.
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=PATIENCE):
                raise BuildFailure(f"the training's proxy ended with {process.returncode}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _backends(hosts: Path) -> Iterator[None]:
    listeners = []
    for host in HOSTS:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Bound by a path from the folder itself: sun_path is short.
        listener.bind(str(hosts / host / "tls-socket"))
        listener.listen(256)
        listeners.append(listener)
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    try:
        yield
    finally:
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    """Answer orders of eight bytes after the hello: how many bytes to read, how many to send."""
    with connection, contextlib.suppress(OSError):
        stream = connection.makefile("rb")
        _skip_proxy_header(stream.peek, stream.read, stream.readline)
        header = stream.read(5)
        stream.read(int.from_bytes(header[3:5], "big"))
        while order := stream.read(8):
            wanted, asked = struct.unpack("!II", order)
            while wanted:
                wanted -= len(stream.read(min(wanted, 1 << 16)))
            connection.sendall(bytes(asked))


def _skip_proxy_header(
    peek: Callable[[int], bytes], read: Callable[[int], bytes], readline: Callable[[], bytes]
) -> None:
    start = peek(1)[:1]
    if start == b"P":
        readline()
    elif start == b"\r":
        header = read(16)
        read(int.from_bytes(header[14:16], "big"))


def _short(address: tuple[str, int], count: int) -> None:
    plain, *others = (client_hello(host) for host in HOSTS)
    for number in range(count):
        # One in eight asks for a header.
        hello = _anew(plain if number % 8 else others[number // 8 % 2])
        _exchange(address, [hello + struct.pack("!II", 0, 1000)], 1000)


def _load(address: tuple[str, int]) -> None:
    _short(address, SHORT)
    plain = client_hello(next(iter(HOSTS)))
    for number in range(PIECES):
        cut = 1 + number % (len(plain) - 1)
        _exchange(address, [plain[:cut], plain[cut:], struct.pack("!II", 0, 100)], 100)
    for number in range(REFUSED):
        wrong = client_hello("nobody.example") if number % 3 else b"GET / HTTP/1.1\r\n\r\n"
        _exchange(address, [wrong], 7)
    for _ in range(MIDDLE):
        _exchange(address, [plain, struct.pack("!II", 0, MIDDLE_BYTES)], MIDDLE_BYTES)
    for _ in range(BULK):
        _exchange(address, [plain, struct.pack("!II", 0, BULK_BYTES)], BULK_BYTES)
        upload = struct.pack("!II", BULK_BYTES, 10) + bytes(BULK_BYTES)
        _exchange(address, [plain, upload], 10)
    with _connected(address) as client:
        client.sendall(_anew(plain))
        for _ in range(TRIPS):
            client.sendall(struct.pack("!II", 100, 100) + bytes(100))
            _receive(client, 100)
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(_connected(address)) for _ in range(PARALLEL)]
        for client in clients:
            client.sendall(plain)
        for _ in range(ROUNDS):
            for client in clients:
                client.sendall(struct.pack("!II", 100, 100) + bytes(100))
            for client in clients:
                _receive(client, 100)


def _anew(hello: bytes) -> bytes:
    """Give a hello the random of another connection: those that come again are counted."""
    return hello[:11] + secrets.token_bytes(32) + hello[43:]


def _exchange(address: tuple[str, int], pieces: list[bytes], expected: int) -> None:
    with _connected(address) as client:
        for piece in pieces:
            client.sendall(piece)
        _receive(client, expected)


def _connected(address: tuple[str, int]) -> socket.socket:
    client = socket.create_connection(address, timeout=PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def _receive(client: socket.socket, expected: int) -> None:
    while expected:
        data = client.recv(min(expected, 1 << 18))
        if not data:
            raise BuildFailure(f"the training's proxy closed early: {expected} bytes are missing")
        expected -= len(data)


if __name__ == "__main__":
    train(sys.argv[1:-1], Path(sys.argv[-1]))
