"""A record: what the log wants to know of a connection, and the line that it makes of that.

Only where lines of connections are wanted is anything asked for it, the local address of the
kernel.
"""

from typing import Protocol

from sniproxy.dataplane.address import address_text, client_text
from sniproxy.log.log import Log
from sniproxy.parser.proxy_header import SocketAddress


class Record(Protocol):
    """Who knows a connection; the times are of the monotonic clock."""

    host: str
    accepted_at: float
    decided_at: float | None

    def client_address(self) -> SocketAddress:
        """Give the client's address."""

    def local_address(self) -> SocketAddress:
        """Give the address that the client connected to: a balancer's own where it says so. Raises
        OSError where nobody knows it any more."""

    def log_end(self, how: str, up: int, down: int) -> None:
        """Log the end: how it ended, and the bytes each way."""


def log_connection(log: Log, record: Record, now: float, how: str, up: int, down: int) -> None:
    """Log one line of a connection: how it ended, or that it is open, and the bytes each way."""
    try:
        local = address_text(record.local_address())
    except OSError:
        local = "unknown"
    decided = record.decided_at
    log.connection(
        client=client_text(record.client_address(), log.clients),
        local=local,
        host=record.host or "none",
        end=how,
        hello_ms="none" if decided is None else round((decided - record.accepted_at) * 1000),
        seconds=round(now - record.accepted_at, 3),
        bytes_up=up,
        bytes_down=down,
    )
