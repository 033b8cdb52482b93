"""PROXY protocol headers, versions 1 and 2, as HAProxy's proxy-protocol.txt (2020/03/05) has them:
bytes, in any cut, to a client's addresses, and back.

Addresses are as the socket module gives them: ``(address, port, …)`` for IPv4 and IPv6, a path
or nothing for Unix sockets. Those that a header has of Unix sockets are bytes.
"""

import functools
import re
import struct
from socket import AF_INET, AF_INET6, AF_UNIX, inet_ntop, inet_pton
from typing import NamedTuple

from sniproxy.parser.alert import Refusal

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str | bytes | None

MAX_VERSION_1 = 107
"""Bytes of a line, its end included: "a 108-byte buffer is always enough" (section 2.1)."""

MAX_VERSION_2 = 16 * 1024
"""Bytes of a block with its addresses and TLVs: HAProxy's own limit. The longest that occur hold
a client's certificate."""

IPV4_MAPPED = "::ffff:"
"""What an IPv4 address begins with where it is written as one of IPv6."""

_LINE_START = b"PROXY "
_LINE_END = b"\r\n"
_UNKNOWN = b"UNKNOWN"
_LINE = re.compile(
    rb"TCP([46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = struct.Struct("!12sBBH")
_LOCAL = 0x20
_PROXY = 0x21
_UNSPECIFIED = 0x00
_TCP_OVER_IPV4 = 0x11
_TCP_OVER_IPV6 = 0x21
_UNIX_STREAM = 0x31
_IPV4_BLOCK = struct.Struct("!4s4sHH")
_IPV6_BLOCK = struct.Struct("!16s16sHH")
_UNIX_BLOCK = struct.Struct("!108s108s")
_NO_BLOCK = struct.Struct("")
_NO_FAMILY = struct.Struct(f"{MAX_VERSION_2}x"), None  # larger than any
_BLOCKS: dict[int, tuple[struct.Struct, int | None]] = {
    _UNSPECIFIED: (_NO_BLOCK, None),
    _TCP_OVER_IPV4: (_IPV4_BLOCK, int(AF_INET)),
    _TCP_OVER_IPV6: (_IPV6_BLOCK, int(AF_INET6)),
    _UNIX_STREAM: (_UNIX_BLOCK, int(AF_UNIX)),
    0x12: (_IPV4_BLOCK, None),
    0x22: (_IPV6_BLOCK, None),
    0x32: (_UNIX_BLOCK, None),
}
"""By transport protocol and family (section 2.2): the addresses, and whose they are; None where the
connection's own are meant, as with the last three, which are of datagrams."""

_TLV = struct.Struct("!BH")
_PP2_TYPE_ALPN = 0x01
_PP2_TYPE_AUTHORITY = 0x02
_PP2_TYPE_CRC32C = 0x03
_PP2_TYPE_UNIQUE_ID = 0x05
_PP2_TYPE_SSL = 0x20
_PASSED_ON = {_PP2_TYPE_ALPN, _PP2_TYPE_UNIQUE_ID, _PP2_TYPE_SSL, *range(0xE0, 0xF8)}
"""Types of TLVs that concern whoever is behind us as well: what the client and its balancer agreed
on, and what is custom or experimental (section 2.2, PP2_TYPE_MIN_CUSTOM to MAX_EXPERIMENT)."""


class Header(NamedTuple):
    """What a header of ``length`` bytes says: the client's address and the one that it connected
    to, both None where the connection's own are meant, and the TLVs that are passed on. Addresses
    are written out only for who asks: nearly nobody does, and it takes half as long as the rest.
    """

    length: int
    client: "_Address" = None
    server: "_Address" = None
    tlvs: bytes = b""

    @property
    def source(self) -> SocketAddress:
        return _written(self.client)

    @property
    def destination(self) -> SocketAddress:
        return _written(self.server)


_Address = SocketAddress | tuple[int, bytes, int]
"""An address, or the family, bytes and port of one."""


def _written(address: _Address) -> SocketAddress:
    if isinstance(address, tuple) and isinstance(address[1], bytes):
        family, packed, port = address
        return inet_ntop(family, packed), port
    return address


_new = tuple.__new__


def decode(received: bytes | bytearray | memoryview) -> Header | None:
    """Read the header that a connection begins with, of all that has ``received`` so far; None
    while more is needed. Takes no longer for a byte more.

    Raises ``Refusal``, without an alert: who speaks is no TLS client.
    """
    if len(received) >= _FIXED.size:
        signature, command, family, size = _FIXED.unpack_from(received)
        if signature == _SIGNATURE:
            return _decode_2(received, command, family, size)
    start = bytes(received[:MAX_VERSION_1])
    if start.startswith(_LINE_START):
        return _decode_1(start)
    if _SIGNATURE.startswith(start[: len(_SIGNATURE)]) or _LINE_START.startswith(start):
        return None
    raise Refusal(None, "no_proxy_header")


def _decode_1(received: bytes) -> Header | None:
    """Read the line of section 2.1."""
    end = received.find(_LINE_END)
    if end < 0:
        if len(received) < MAX_VERSION_1:
            return None
        raise _bad()
    length = end + len(_LINE_END)
    line = received[len(_LINE_START) : end]
    # "The receiver must ignore anything presented before the CRLF" behind the word.
    if line == _UNKNOWN or line.startswith(_UNKNOWN + b" "):
        return Header(length)
    match = _LINE.fullmatch(line)
    if match is None:
        raise _bad()
    family = AF_INET if match[1] == b"4" else AF_INET6
    ports = int(match[4]), int(match[5])
    try:
        source, destination = (
            inet_ntop(family, inet_pton(family, word.decode("ascii"))) for word in match.group(2, 3)
        )
    except OSError:
        raise _bad() from None
    if max(ports) > 0xFFFF:
        raise _bad()
    return Header(length, (source, ports[0]), (destination, ports[1]))


def _decode_2(
    received: bytes | bytearray | memoryview, command: int, family: int, size: int
) -> Header | None:
    """Read the block of section 2.2."""
    length = _FIXED.size + size
    if command not in (_LOCAL, _PROXY) or length > MAX_VERSION_2:
        raise _bad()
    if len(received) < length:
        return None
    if command == _LOCAL:
        # "The receiver [...] must discard the protocol block including the family".
        return Header(length)
    layout, whose = _BLOCKS.get(family, _NO_FAMILY)
    position = _FIXED.size + layout.size
    if position > length:
        raise _bad()
    tlvs = _passed_on(bytes(received[:length]), position) if position < length else b""
    if whose is None:
        return Header(length, None, None, tlvs)
    addresses = layout.unpack_from(received, _FIXED.size)
    if whose == AF_UNIX:
        client, server = addresses
        return Header(length, client.rstrip(b"\0"), server.rstrip(b"\0"), tlvs)
    client, server, client_port, server_port = addresses
    # A named tuple's own constructor is a function of Python, which takes a tenth of all this.
    return _new(Header, (length, (whose, client, client_port), (whose, server, server_port), tlvs))


def _passed_on(header: bytes, position: int) -> bytes:
    """Read the TLVs of a whole header, which begin at ``position`` (section 2.2.1 and later); give
    those that go on to who is behind us."""
    passed = []
    checked = False
    while position < len(header):
        value = position + _TLV.size
        if value > len(header):
            raise _bad()
        kind, size = _TLV.unpack_from(header, position)
        end = value + size
        if end > len(header):
            raise _bad()
        if kind in _PASSED_ON:
            passed.append(header[position:end])
        elif kind == _PP2_TYPE_CRC32C:
            # One is all that anybody needs, and each is as long as the header to calculate.
            if checked:
                raise _bad()
            checked = True
            # "The checksum [...] is calculated over the whole header with the field's value 0".
            without = header[:value] + bytes(size) + header[end:]
            if header[value:end] != crc32c(without).to_bytes(4, "big"):
                raise _bad()
        position = end
    return b"".join(passed)


def _bad() -> Refusal:
    return Refusal(None, "bad_proxy_header")


def crc32c(data: bytes) -> int:
    """Give the CRC of RFC 4960 appendix B (Castagnoli), which zlib has not."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@functools.cache
def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        table.append(value)
    return table


def encoded(
    version: int, client: SocketAddress, local: SocketAddress, host: str, tlvs: bytes = b""
) -> bytes:
    """Write the header of a version, 1 or 2; the first has room for nothing but the addresses."""
    if version == 1:
        return version_1(client, local)
    return version_2(client, local, host, tlvs)


def version_1(source: SocketAddress, destination: SocketAddress) -> bytes:
    """Encode the line of section 2.1: "UNKNOWN" for a client without TCP."""
    endpoints = _endpoints(source, destination)
    if endpoints is None:
        return b"PROXY UNKNOWN\r\n"
    (client, client_port), (server, server_port) = endpoints
    family = "TCP6" if ":" in client else "TCP4"
    return f"PROXY {family} {client} {server} {client_port} {server_port}\r\n".encode("ascii")


def version_2(
    source: SocketAddress, destination: SocketAddress, host: str, tlvs: bytes = b""
) -> bytes:
    """Encode the block of section 2.2 with the host name, if there is one, as PP2_TYPE_AUTHORITY
    (2.2.2), and the TLVs of the header that we got.

    A client of a Unix socket of ours is announced as LOCAL: it has no address to speak of. With
    TLVs, of which nobody reads any behind LOCAL, it is one of an unspecified family.
    """
    endpoints = _endpoints(source, destination)
    if endpoints is not None:
        (client, client_port), (server, server_port) = endpoints
        ip = AF_INET6 if ":" in client else AF_INET
        command, family = _PROXY, _TCP_OVER_IPV6 if ip == AF_INET6 else _TCP_OVER_IPV4
        ports = struct.pack("!HH", client_port, server_port)
        block = inet_pton(ip, client) + inet_pton(ip, server) + ports
    elif isinstance(source, bytes) and isinstance(destination, bytes):
        command, family = _PROXY, _UNIX_STREAM
        block = _UNIX_BLOCK.pack(source, destination)
    else:
        command, family, block = _PROXY if tlvs else _LOCAL, _UNSPECIFIED, b""
    if host:
        block += _TLV.pack(_PP2_TYPE_AUTHORITY, len(host)) + host.encode("ascii")
    block += _fitting(tlvs, MAX_VERSION_2 - _FIXED.size - len(block))
    return _FIXED.pack(_SIGNATURE, command, family, len(block)) + block


def _fitting(tlvs: bytes, room: int) -> bytes:
    """Give as many of the TLVs, from the first on, as a header has room for: what we have accepted
    is longer by our host name, and the next of us is to accept it too."""
    end = 0
    while end < len(tlvs) and len(tlvs) > room:
        size = _TLV.size + _TLV.unpack_from(tlvs, end)[1]
        if end + size > room:
            return tlvs[:end]
        end += size
    return tlvs


def _endpoints(
    source: SocketAddress, destination: SocketAddress
) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Give both addresses in one family, IPv4 where both are IPv4-mapped; None if not TCP."""
    if not isinstance(source, tuple) or not isinstance(destination, tuple):
        return None
    addresses = source[0], destination[0]
    if all(address.startswith(IPV4_MAPPED) and "." in address for address in addresses):
        addresses = addresses[0][len(IPV4_MAPPED) :], addresses[1][len(IPV4_MAPPED) :]
    return (addresses[0], source[1]), (addresses[1], destination[1])
