"""PROXY protocol headers, versions 1 and 2, as HAProxy's proxy-protocol.txt (2020/03/05) has them.

Addresses come as the socket module gives them: ``(address, port, …)`` for IPv4 and IPv6, a path
or nothing for Unix sockets.
"""

import struct
from socket import AF_INET, AF_INET6, inet_pton

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str | bytes | None

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_VERSION_2_LOCAL = 0x20
_VERSION_2_PROXY = 0x21
_UNSPECIFIED = 0x00
_TCP_OVER_IPV4 = 0x11
_TCP_OVER_IPV6 = 0x21
_PP2_TYPE_AUTHORITY = 0x02

IPV4_MAPPED = "::ffff:"
"""What an IPv4 address begins with where it is written as one of IPv6."""


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


def version_1(source: SocketAddress, destination: SocketAddress) -> bytes:
    """Encode the line of section 2.1: at most 107 bytes, "UNKNOWN" for a client without TCP."""
    endpoints = _endpoints(source, destination)
    if endpoints is None:
        return b"PROXY UNKNOWN\r\n"
    (client, client_port), (server, server_port) = endpoints
    family = "TCP6" if ":" in client else "TCP4"
    return f"PROXY {family} {client} {server} {client_port} {server_port}\r\n".encode("ascii")


def version_2(source: SocketAddress, destination: SocketAddress, host: str) -> bytes:
    """Encode the block of section 2.2 with the host name, if there is one, as PP2_TYPE_AUTHORITY
    (2.2.2).

    A client without TCP is announced as LOCAL: it has no address to speak of.
    """
    endpoints = _endpoints(source, destination)
    if endpoints is None:
        command, family, addresses = _VERSION_2_LOCAL, _UNSPECIFIED, b""
    else:
        (client, client_port), (server, server_port) = endpoints
        ip = AF_INET6 if ":" in client else AF_INET
        command, family = _VERSION_2_PROXY, _TCP_OVER_IPV6 if ip == AF_INET6 else _TCP_OVER_IPV4
        ports = struct.pack("!HH", client_port, server_port)
        addresses = inet_pton(ip, client) + inet_pton(ip, server) + ports
    block = addresses
    if host:
        block += struct.pack("!BH", _PP2_TYPE_AUTHORITY, len(host)) + host.encode("ascii")
    return _SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block
