"""What the tests need: clients and load by TLS, backends as other users, systemctl."""

import contextlib
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

HERE = pathlib.Path(__file__).parent
HOSTS = pathlib.Path("/srv/sniproxy")
EXECUTABLE = pathlib.Path("/usr/bin/sniproxy")
EXAMPLES = pathlib.Path("/usr/share/doc/sniproxy/examples")
DROP_INS = pathlib.Path("/etc/systemd/system")

BLOG = "blog.promise.example"
SHOP = "shop.promise.example"
"""Names that ``server.pem`` is for, as it is for localhost."""

TIMEOUT = 60 * int(os.environ["PATIENCE"])
"""Seconds after which something that should have happened has not."""


def run(*command: str | pathlib.Path, check: bool = True, user: str | None = None) -> str:
    """Run a command, as a user if one is named; give what it printed, both streams."""
    done = _finished(command, user)
    if check and done.returncode:
        # systemctl only says that one is to look there.
        seen = journal("--lines=40") if command[0] == "systemctl" else ""
        raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{seen}")
    return done.stdout


def fails(*command: str | pathlib.Path, user: str | None = None) -> str:
    """Run a command that must fail; give what it printed."""
    done = _finished(command, user)
    assert done.returncode != 0, f"{command} worked:\n{done.stdout}"
    return done.stdout


def _finished(
    command: Sequence[str | pathlib.Path], user: str | None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*rights_of(user), *command],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rights_of(user: str | None) -> list[str]:
    """Give the start of a command line that runs the rest as a user."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []


def eventually(what: str, holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)


def shown(property_name: str, unit: str = "sniproxy.service") -> str:
    """Give a property of a unit."""
    return run("systemctl", "show", "--value", f"--property={property_name}", unit).strip()


def main_pid() -> int:
    return int(shown("MainPID"))


def journal(*options: str) -> str:
    run("journalctl", "--sync")
    return run("journalctl", "--no-pager", *options)


def first_message(name: str | None) -> bytes:
    """Give the first message that a TLS client sends, for a name or for none."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


class Client:
    """A TLS connection through the proxy, verified by name."""

    def __init__(
        self, name: str, address: str = "127.0.0.1", port: int = 443, trusted: str = "ca.pem"
    ) -> None:
        context = ssl.create_default_context(cafile=str(HERE / trusted))
        stream = socket.create_connection((address, port), TIMEOUT)
        try:
            self._name = name
            self._stream = context.wrap_socket(stream, server_hostname=name)
        except BaseException:
            stream.close()
            raise

    def answer(self, path: str) -> bytes:
        """Ask a web server for a page, on the last connection that this is used for."""
        self._stream.sendall(f"GET {path} HTTP/1.0\r\nHost: {self._name}\r\n\r\n".encode())
        return b"".join(iter(lambda: self._stream.recv(10000), b""))

    def fetch(self, path: str) -> bytes:
        """Give the page itself of an answer."""
        return self.answer(path).partition(b"\r\n\r\n")[2]

    def ask(self) -> str:
        """Send a line; give the title that comes back, "" at the end of the stream."""
        self._stream.sendall(b"?\n")
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = self._stream.recv(1000)
            if not chunk:
                break
            answer += chunk
        return answer.decode().strip()

    def has_ended(self) -> bool:
        """Wait for the end of the stream, in whichever way."""
        try:
            return self._stream.recv(1000) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(name: str, address: str = "127.0.0.1") -> str:
    """Ask on a connection of its own."""
    with Client(name, address) as client:
        return client.ask()


class Load:
    """Connections all the time, one after the other in a few threads. Each must be answered."""

    def __init__(self, *names: str) -> None:
        self.titles: set[str] = set()
        self.longest = 0.0
        """Seconds from a connection's begin to its answer, the longest since this was set to 0."""
        self._names = names
        self._failures: list[str] = []
        self._count = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(3)]

    def _work(self) -> None:
        while not self._stop.is_set():
            for name in self._names:
                since = time.monotonic()
                try:
                    title = ask(name)
                except OSError as error:
                    self._failures.append(f"connection {self._count}: {error!r}")
                    continue
                if title:
                    self.titles.add(title)
                else:
                    self._failures.append(f"connection {self._count}: ended without an answer")
                self.longest = max(self.longest, time.monotonic() - since)
                self._count += 1

    def more(self, count: int = 50) -> None:
        """Wait for so many answers more."""
        aim = self._count + count
        eventually(f"{count} more answers", lambda: self._count >= aim or self._failures)
        assert not self._failures

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.more()
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        if error is None:
            assert not self._failures


class Backend:
    """A running ``backend.py``."""

    def __init__(
        self, path: pathlib.Path, title: str, user: str = "alice", umask: str = "000"
    ) -> None:
        self.process = subprocess.Popen(
            [*rights_of(user), "python3", str(HERE / "backend.py"), str(path), title, umask],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "listening\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def make_host(name: str, *options: str) -> pathlib.Path:
    """Make a host's directory as install(1) does; alice's unless told otherwise."""
    path = HOSTS / name
    run("install", "-d", *(options or ("--owner=alice", "--group=alice")), path)
    return path


def clear_hosts() -> None:
    """Leave the hosts directory as it was installed."""
    HOSTS.chmod(0o755)
    for path in HOSTS.iterdir():
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif "." in path.name or path.name.startswith("_") or path.name == "sniproxy":
            shutil.rmtree(path)


def follow(commands: str, folder: pathlib.Path = HERE) -> str:
    """Do what the manual says, all of it; give what was printed."""
    return run("sh", "-euc", f"cd {folder}\n{commands}")


def listening_inodes() -> list[str]:
    """Name the sockets that listen on port 443, each by its inode."""
    return sorted(row[9] for row in _sockets_on_443() if row[3] == "0A")


def served_connections() -> list[list[str]]:
    """Give the rows of connections to port 443, proc_net_tcp(5); who waits in the queue there has
    inode 0."""
    return [row for row in _sockets_on_443() if row[3] == "01"]


def _sockets_on_443() -> list[list[str]]:
    tables = [pathlib.Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [row for row in rows if row[1].endswith(":01BB")]
