"""The program from outside: start it on a socket, put backends into its hosts directory."""

import base64
import hashlib
import os
import pathlib
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

TIMEOUT = 20 * int(os.environ.get("PATIENCE", "1"))
"""Seconds after which a peer of a broken program gives up; more in an emulated machine."""


def commands(option: str | None) -> list[str]:
    """Give the command that starts sniproxy."""
    # Without -P, the interpreter would look for modules in the hosts directory first.
    return shlex.split(option) if option else [sys.executable, "-P", "-m", "sniproxy"]


class Proxy:
    """A running sniproxy, its hosts directory and its log."""

    def __init__(
        self,
        command: Sequence[str],
        hosts: pathlib.Path,
        listening: socket.socket,
        environment: dict[str, str],
        preexec: Callable[[], None] | None = None,
    ) -> None:
        self.hosts = hosts
        self.environment = environment
        self.listening = listening
        self.log_path = hosts.parent / f"log-{id(self)}"
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("LISTEN_", "NOTIFY"))}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                list(command),
                stdin=listening,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=hosts,
                env=variables | environment,
                preexec_fn=preexec,  # noqa: PLW1509 - no threads of ours are forked
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def directory(self, host: str) -> pathlib.Path:
        path = self.hosts / directory_name(self.hashed, host)
        path.mkdir(exist_ok=True)
        return path

    hashed = False

    def connect(self) -> socket.socket:
        client = socket.socket(self.listening.family, socket.SOCK_STREAM)
        client.settimeout(TIMEOUT)
        client.connect(self.listening.getsockname())
        return client

    def stop(self, *numbers: int) -> int:
        for number in numbers:
            if self.process.poll() is None:
                self.process.send_signal(number)
        return self.process.wait(TIMEOUT)

    def ask(self, wire: bytes, *, end: bool = False) -> bytes:
        """Send bytes on a new connection and read to the end of the answer."""
        with self.connect() as client:
            client.sendall(wire)
            if end:
                client.shutdown(socket.SHUT_WR)
            return read_all(client)


class Running:
    """A program in the folder's hosts directory, and its log."""

    def __init__(
        self, folder: pathlib.Path, *words: str | pathlib.Path, **environment: str
    ) -> None:
        self.hosts = folder / "hosts"
        self.log_path = folder / "log"
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("LISTEN_", "NOTIFY"))}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=self.hosts,
                env=variables | environment,
                close_fds=False,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def __enter__(self) -> "Running":
        wait_until(lambda: "event=start" in self.log)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(TIMEOUT) == 0
        assert "unexpected_error" not in self.log


def passed(
    command: Sequence[str | pathlib.Path],
    named: Sequence[tuple[str, socket.socket]],
    at_input: socket.socket | None = None,
) -> list[str | pathlib.Path]:
    """Give the command by which a shell passes these, by their names, to another."""
    sockets = [one for _, one in named]
    for one in [*sockets, *([at_input] if at_input else [])]:
        os.set_inheritable(one.fileno(), True)
    # Each is moved, out of the way of the numbers that they are going to have: no copy is left.
    moves = [f"{50 + at}<&{one.fileno()}-" for at, one in enumerate(sockets)]
    if at_input:
        moves.append(f"<&{at_input.fileno()}-")
    moves += [f"{3 + at}<&{50 + at}-" for at in range(len(sockets))]
    names = ":".join(name for name, _ in named)
    variables = f"LISTEN_PID=$$ LISTEN_FDS={len(sockets)} LISTEN_FDNAMES={names}"
    script = f'export {variables}; exec "$@" {" ".join(moves)}'
    return ["/bin/bash", "-c", script, "sh", *command]


def children(pid: int) -> list[int]:
    """Name the processes that a process has forked and that are still there, proc(5)."""
    return [
        int(one) for one in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def state(pid: int) -> str:
    """Give the state of a process by its letter, proc(5)."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def lowest_free_descriptor(pid: int) -> int:
    """Give the number that a process's next descriptor would have, proc(5)."""
    taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    return min(set(range(len(taken) + 1)) - taken)


def memory(proxy: Proxy) -> int:
    """Give the resident bytes of all processes of a proxy that no file has, proc(5): what is
    shared of a file counts the less, the more other programs run on this machine."""
    total = 0
    for pid in (proxy.process.pid, *children(proxy.process.pid)):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                total += int(line.split()[1]) * 1024
    return total


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that nothing tells of; fail when it takes too long."""
    deadline = time.monotonic() + TIMEOUT
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def wait_for(proxy: Proxy, text: str) -> None:
    """Wait until the log says it."""
    wait_until(lambda: text in proxy.log)


def directory_name(hashed: bool, host: str) -> str:
    if not hashed:
        return host
    digest = hashlib.blake2s(host.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def read_all(stream: socket.socket) -> bytes:
    data = bytearray()
    while chunk := stream.recv(1 << 20):
        data += chunk
    return bytes(data)


def read_exactly(stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = stream.recv(size - len(data))
        assert chunk, f"ended after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


def reset(stream: socket.socket) -> None:
    """Close a TCP connection by a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


class Backend:
    """A listening Unix socket in a host's directory; tests accept from it by hand."""

    def __init__(self, directory: pathlib.Path, backlog: int = 100) -> None:
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.settimeout(TIMEOUT)
        # Bound by a short name: the path may be longer than an address.
        here = os.open(".", os.O_PATH)
        try:
            os.chdir(directory)
            self.listening.bind("tls-socket")
        finally:
            os.fchdir(here)
            os.close(here)
        self.listening.listen(backlog)
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        stream, _ = self.listening.accept()
        stream.settimeout(TIMEOUT)
        self.accepted.append(stream)
        return stream

    def close(self) -> None:
        self.listening.close()
        for stream in self.accepted:
            stream.close()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread
