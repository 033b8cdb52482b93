"""One proxy for all pairs, with a server of each kind behind it."""

import pathlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import pytest
import trustme

from tests.end_to_end.conftest import command, hashed
from tests.end_to_end.harness import TIMEOUT, Proxy
from tests.peers.peers import SERVERS, Missing
from tests.peers.table import Cells

__all__ = ["command", "hashed"]


class World:
    """The proxy, the authority that all clients trust, the servers that run so far, and how each
    pair came out."""

    def __init__(self, folder: pathlib.Path, proxy: Proxy) -> None:
        self.folder = folder
        self.proxy = proxy
        self.port: int = proxy.listening.getsockname()[1]
        # Plain RSA: every one of the libraries takes that.
        self.authority = trustme.CA(key_type=trustme.KeyType.RSA)
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.running: list[subprocess.Popen[bytes]] = []
        self.started: dict[str, str | None] = {}
        self.outcomes: Cells = {}

    def host(self, server: str) -> str:
        """Give the host that a server serves; it is started when first asked for. Raises
        ``Missing``."""
        host = f"{server}.example"
        if server not in self.started:
            try:
                self._start(server, host)
                self.started[server] = None
            except Missing as missing:
                self.started[server] = str(missing)
        reason = self.started[server]
        if reason is not None:
            raise Missing(reason)
        return host

    def _start(self, server: str, host: str) -> None:
        folder = self.folder / server
        folder.mkdir(exist_ok=True)
        identity = self.authority.issue_cert(host, key_type=trustme.KeyType.RSA)
        pem = folder / "server.pem"
        identity.private_key_and_cert_chain_pem.write_to_path(str(pem))
        path = self.proxy.directory(host) / "tls-socket"
        self.begin(folder, SERVERS[server](folder, pem, path), path)

    def begin(
        self, folder: pathlib.Path, commands: list[list[str]], address: pathlib.Path | int
    ) -> None:
        """Start commands, the last of which listens on a Unix socket or a port of TCP; they run
        until the end."""
        directory = address.parent if isinstance(address, pathlib.Path) else folder
        for arguments in commands:
            log = (folder / "log").open("ab")
            with log:
                self.running.append(
                    subprocess.Popen(
                        arguments, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=directory
                    )
                )
        wait_for_listener(address, self.running[-1], folder / "log")

    def close(self) -> None:
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            process.wait(TIMEOUT)
            if process.stdin is not None:
                process.stdin.close()


def wait_for_listener(
    address: pathlib.Path | int, process: subprocess.Popen[bytes], log: pathlib.Path
) -> None:
    """Try until somebody listens."""
    unix = isinstance(address, pathlib.Path)
    where = str(address) if unix else ("127.0.0.1", address)
    while process.poll() is None:
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as probe:
            if probe.connect_ex(where) == 0:
                return
    pytest.fail(f"{process.args}: {log.read_text()}")


@pytest.fixture(scope="session")
def world(command: list[str], hashed: bool) -> Iterator[World]:
    # Not below pytest's own folder, which Apache's user may not enter.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sniproxy-peers-"))
    folder.chmod(0o755)
    (folder / "hosts").mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        proxy = Proxy(command, folder / "hosts", listening, {})
        proxy.hashed = hashed
        world = World(folder, proxy)
        yield world
        world.close()
        proxy.stop(2)
    shutil.rmtree(folder, ignore_errors=True)
