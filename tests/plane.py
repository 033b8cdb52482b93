"""The data plane in the test's own process: real sockets and an epoll, and a clock by hand."""

import errno
import os
import pathlib
import socket
from collections.abc import Callable

import pytest

from sniproxy.dataplane import arrival
from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.farewell import part
from sniproxy.dataplane.listener import welcome
from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.sweep import Sweep
from sniproxy.log.log import Level, Log
from sniproxy.log.repeats import PERIOD
from sniproxy.log.sinks import FileSink
from sniproxy.process.parcel import Packer, Parcel
from sniproxy.resolver.hosts import Hosts
from tests.clock import Clock
from tests.end_to_end.harness import Backend


class Packed(Packer):
    """Keeps the parcels that it has made, once it is closed the last of them as well."""

    def __init__(self) -> None:
        self.parcels: list[Parcel] = []
        super().__init__(self._keep)

    def _keep(self, parcel: Parcel) -> None:
        self.parcels.append(Parcel(parcel.socket.dup(), parcel.count))


class Descriptors:
    """How many are left for backends, in place of a limit that would be the test's as well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int = 0) -> None:
        self.left = left
        self._make = arrival.SocketType
        monkeypatch.setattr(arrival, "SocketType", self._take)

    def _take(self, *words: int) -> socket.SocketType:
        if not self.left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.left -= 1
        return self._make(*words)


def alert(number: int) -> bytes:
    """Give the record of a fatal alert."""
    return bytes([0x15, 3, 3, 0, 2, 2, number])


TURNS = 2000
"""Looks for events after which what is waited for does not happen any more."""


class Plane:
    """What a server consists of, with the working directory as the hosts directory."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.clock = Clock()
        self.faults: list[Exception] = []
        self.reports: list[tuple[str, dict[str, object]]] = []
        self.poller = Poller(self.faults.append)
        self.hosts = Hosts()
        self._log_path = folder / "log"
        self._log_file = self._log_path.open("wb", buffering=0)
        log = Log(FileSink(self._log_file.fileno()), Level.CONNECTIONS)
        log.on_repeats = Sweep(self.clock.later, PERIOD, log.report_repeats).wake
        self.connections = Connections(
            self.poller,
            self.hosts,
            log,
            lambda: self.clock.now,
            self.clock.later,
            lambda event, **fields: self.reports.append((event, fields)),
            part,
        )
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._backends: list[Backend] = []
        self._clients: list[socket.socket] = []

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def backend(self, host: str, backlog: int = 10) -> Backend:
        path = pathlib.Path(host)
        path.mkdir()
        self._backends.append(Backend(path, backlog))
        return self._backends[-1]

    def client(self, *first: bytes, kind: type[Arrival] = Arrival) -> socket.socket:
        """Connect a client that has sent something, and welcome it as a listener does."""
        client = socket.create_connection(self._listening.getsockname(), 20)
        self._clients.append(client)
        for data in first:
            client.sendall(data)
        accepted, address = self._listening.accept()
        if first:
            # On loopback it has arrived when it was sent; the first read is to find it.
            accepted.recv(1, socket.MSG_PEEK)
        welcome(self.connections, accepted, address, kind)
        return client

    def turn(self, count: int = 1) -> None:
        """Serve the events that there are now."""
        for _ in range(count):
            self.poller.select(0)

    def until(self, true: Callable[[], bool]) -> None:
        """Serve events until something is so."""
        for _ in range(TURNS):
            if true():
                return
            self.poller.select(0.01)
        raise AssertionError("it did not happen")

    def read(self, stream: socket.socket, size: int) -> bytes:
        """Read from a client or a backend while the data plane goes on; less at the end."""
        data = bytearray()
        stream.setblocking(False)
        for _ in range(TURNS):
            try:
                while len(data) < size:
                    chunk = stream.recv(size - len(data))
                    if not chunk:
                        return bytes(data)
                    data += chunk
            except BlockingIOError:
                self.poller.select(0.01)
                continue
            return bytes(data)
        raise AssertionError(f"only {len(data)} of {size} bytes came")

    def close(self) -> None:
        self.connections.close_all()
        for one in (*self._clients, *self._backends, self._listening, self._log_file):
            one.close()
        self.connections.relay.pipes.close()
        self.connections.shares.close()
        self.poller.close()
        self.hosts.close()
