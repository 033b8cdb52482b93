"""A client's address: how it is written for the log, and whom it is counted for."""

from socket import AF_INET6, inet_ntoa, inet_pton

from sniproxy.parser.proxy_header import IPV4_MAPPED, SocketAddress

_MAPPED = bytes(10) + b"\xff\xff"


def address_text(address: SocketAddress) -> str:
    """Write a client's address for the log: IPv6 in brackets, IPv4 as such wherever it came by, a
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
    packed = inet_pton(AF_INET6, address[0])
    return inet_ntoa(packed[12:]) if packed.startswith(_MAPPED) else packed[:8].hex()
