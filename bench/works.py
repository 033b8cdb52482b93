"""The works: what a load is asked for, and what a unit of it is.

The counts are such that one run takes about half a second, and that the fifty of each work (eleven
candidates, five rounds) are done in less than a minute.
"""

import dataclasses
import struct

HOST = "bench.example"
GIGABYTE = 1_000_000_000
FLIGHT = 64
"""Clients at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What the load generator is told (load.c), and how many units that makes.

    ``factor`` turns CPU seconds a unit into the unit that is shown.
    """

    name: str
    mode: str
    count: int
    flight: int
    size: int
    units: float
    factor: float = 1e6
    hello: int = 337
    header: bytes = b""

    def less(self, times: int = 10) -> "Work":
        """Do a tenth of it."""
        if self.mode == "r" and self.size < GIGABYTE // 100:
            count = max(1, self.count // times)
            return dataclasses.replace(self, count=count, units=self.units * count / self.count)
        size = max(1, self.size // times)
        return dataclasses.replace(self, size=size, units=self.units * size / self.size)


def _bulk(name: str, mode: str) -> Work:
    return Work(name, mode, 2, 2, 300_000_000, 0.6, factor=1.0)


CONNECTION = Work("connection", "r", 10_000, FLIGHT, 100, 10_000)
BIG_HELLO = dataclasses.replace(CONNECTION, name="connection, 1.8 kB hello", hello=1800)
REPLY = Work("reply of 200 kB", "r", 2_500, 16, 200_000, 2_500)
DOWNLOAD = _bulk("download", "r")
UPLOAD = _bulk("upload", "u")
DOWNLOAD_RECORDS = _bulk("download in TLS records", "t")
UPLOAD_RECORDS = _bulk("upload in TLS records", "w")
ROUND_TRIP = Work("round trip", "e", FLIGHT, FLIGHT, 600, FLIGHT * 601)
ONE_CONNECTION = Work("connection, one at a time", "r", 4_000, 1, 100, 4_000)
ONE_ROUND_TRIP = Work("round trip, one client", "e", 1, 1, 25_000, 25_001)
WORKS = (
    ONE_CONNECTION,
    ONE_ROUND_TRIP,
    CONNECTION,
    BIG_HELLO,
    REPLY,
    DOWNLOAD,
    DOWNLOAD_RECORDS,
    UPLOAD,
    UPLOAD_RECORDS,
    ROUND_TRIP,
)


def client_hello(size: int) -> bytes:
    """Build a hello for HOST of exactly ``size`` bytes, server_name last but one."""
    name = HOST.encode()
    server_name = struct.pack("!HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = b"\3\3" + bytes(32) + b"\x20" + bytes(32) + b"\0\x20" + b"\x13\1" * 16 + b"\1\0"
    padding = size - 9 - len(body) - 2 - len(server_name) - 8
    extensions = struct.pack("!HH", 51, padding) + bytes(padding) + server_name + b"\0\x17\0\0"
    body += struct.pack("!H", len(extensions)) + extensions
    return struct.pack("!BHHB", 22, 0x301, len(body) + 4, 1) + len(body).to_bytes(3, "big") + body
