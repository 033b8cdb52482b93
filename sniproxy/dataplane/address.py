"""A client's address, as it is written for the log."""

from sniproxy.parser.proxy_header import IPV4_MAPPED, SocketAddress


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
