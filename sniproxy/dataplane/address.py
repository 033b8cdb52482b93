"""A client's address: how it is written for the log, and whom it is counted for."""

from socket import AF_INET6, inet_aton, inet_ntoa, inet_ntop, inet_pton

from sniproxy.log.log import Clients
from sniproxy.parser.proxy_header import IPV4_MAPPED, SocketAddress

_MAPPED = bytes(10) + b"\xff\xff"


def client_text(address: SocketAddress, shown: Clients) -> str:
    """Write as much of a client's address as is to be ``shown``: of a prefix, the first 24 bits of
    IPv4, wherever it came by, and 48 of IPv6."""
    if shown is Clients.NONE:
        return "none"
    if shown is Clients.FULL or not isinstance(address, tuple):
        return address_text(address)
    packed = _packed(address[0])
    if len(packed) == 4:
        return f"{inet_ntoa(packed[:3] + bytes(1))}/24"
    return f"{inet_ntop(AF_INET6, packed[:6] + bytes(10))}/48"


def address_text(address: SocketAddress) -> str:
    """Write an address for the log: IPv6 in brackets, IPv4 as such wherever it came by, a
    Unix client as such."""
    if not isinstance(address, tuple):
        return "unix"
    host, port = address[0], address[1]
    if "." in host:
        host = host.removeprefix(IPV4_MAPPED)
    return host_and_port(host, port)


def host_and_port(host: str, port: int) -> str:
    """Write both as one word: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def network(address: SocketAddress) -> str:
    """Name whom a client's address is counted for: IPv4 itself, of IPv6 the first 64 bits, which
    are one customer's; Unix clients are all one."""
    if not isinstance(address, tuple):
        return "unix"
    if ":" not in address[0]:
        return address[0]
    packed = _packed(address[0])
    return inet_ntoa(packed) if len(packed) == 4 else packed[:8].hex()


def _packed(host: str) -> bytes:
    """Give the 4 or 16 bytes of an address, of IPv4 wherever it came by."""
    if ":" not in host:
        return inet_aton(host)
    packed = inet_pton(AF_INET6, host.partition("%")[0])
    return packed[12:] if packed.startswith(_MAPPED) else packed
