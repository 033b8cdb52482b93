"""The line of a connection."""

import pathlib

from sniproxy.dataplane.record import log_connection
from sniproxy.log.log import Level, Log
from sniproxy.log.sinks import FileSink
from sniproxy.parser.proxy_header import SocketAddress


class Known:
    """A connection of which everything is known; or, without a host, what an early end leaves."""

    def __init__(self, host: str, decided_at: float | None, local: SocketAddress) -> None:
        self.host, self.decided_at, self.local = host, decided_at, local
        self.accepted_at = 100.0

    def client_address(self) -> SocketAddress:
        return "192.0.2.1", 5000

    def local_address(self) -> SocketAddress:
        if not self.host:
            raise OSError
        return self.local

    def log_end(self, how: str, up: int, down: int) -> None:
        raise NotImplementedError


def test_a_line(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        log = Log(FileSink(file.fileno()), Level.CONNECTIONS, clock=lambda: 0)
        local = "2001:db8::1", 443, 0, 0
        log_connection(log, Known("a.example", 100.125, local), 103.25, "closed", 5, 7)
        log_connection(log, Known("", None, None), 100.5, "reset", 0, 0)
    whole, early = (tmp_path / "log").read_text().splitlines()
    client = "event=connection client=192.0.2.1:5000"
    decided = "host=a.example end=closed hello_ms=125 seconds=3.25 bytes_up=5 bytes_down=7"
    assert whole.endswith(f" {client} local=[2001:db8::1]:443 {decided}")
    ended = "host=none end=reset hello_ms=none seconds=0.5 bytes_up=0 bytes_down=0"
    assert early.endswith(f" {client} local=unknown {ended}")
