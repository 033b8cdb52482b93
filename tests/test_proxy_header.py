"""PROXY headers, read back by a decoder that knows only the specification."""

import ipaddress
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from sniproxy.resolver.proxy_header import version_1, version_2


def text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Write an address as the socket module does."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.inet_ntop(family, address.packed)


v4 = st.tuples(st.ip_addresses(v=4).map(text), st.integers(0, 65535))
v6 = st.tuples(st.ip_addresses(v=6).map(text), st.integers(0, 65535), st.just(0), st.just(0))
pairs = st.one_of(st.tuples(v4, v4), st.tuples(v6, v6))


def test_exact_lines() -> None:
    assert version_1(("1.2.3.4", 5), ("6.7.8.9", 443)) == b"PROXY TCP4 1.2.3.4 6.7.8.9 5 443\r\n"
    assert version_1(("::1", 5, 0, 0), ("::2", 443, 0, 0)) == b"PROXY TCP6 ::1 ::2 5 443\r\n"
    mapped = ("::ffff:1.2.3.4", 5, 0, 0), ("::ffff:6.7.8.9", 443, 0, 0)
    assert version_1(*mapped) == b"PROXY TCP4 1.2.3.4 6.7.8.9 5 443\r\n"
    assert version_2(*mapped, "a") == version_2(("1.2.3.4", 5), ("6.7.8.9", 443), "a")
    # One that is not mapped keeps both as they are.
    mixed = version_1(("::ffff:1.2.3.4", 5, 0, 0), ("::2", 443, 0, 0))
    assert mixed == b"PROXY TCP6 ::ffff:1.2.3.4 ::2 5 443\r\n"
    assert version_1("", "/run/socket") == b"PROXY UNKNOWN\r\n"
    assert version_2(None, b"", "a.b")[12:] == b"\x20\x00\x00\x06\x02\x00\x03a.b"


@given(pair=pairs)
def test_version_2_reads_back(pair: tuple[tuple[str, int], tuple[str, int]]) -> None:
    data = version_2(pair[0], pair[1], "a.example")
    assert data[:12] == bytes.fromhex("0d0a0d0a000d0a515549540a")
    assert data[12] == 0x21
    (size,) = struct.unpack("!H", data[14:16])
    assert len(data) == 16 + size
    width = {0x11: 4, 0x21: 16}[data[13]]
    block = data[16:]
    read = [ipaddress.ip_address(block[:width]), ipaddress.ip_address(block[width : 2 * width])]
    ports = struct.unpack("!HH", block[2 * width : 2 * width + 4])
    sent = [ipaddress.ip_address(end[0]) for end in pair]
    mapped = [getattr(address, "ipv4_mapped", None) for address in sent]
    assert read == (mapped if all(mapped) else sent)
    assert ports == (pair[0][1], pair[1][1])
    assert block[2 * width + 4 :] == b"\2\0\x09a.example"


@given(pair=pairs)
def test_version_1_is_short_enough(pair: tuple[tuple[str, int], tuple[str, int]]) -> None:
    line = version_1(pair[0], pair[1])
    assert len(line) <= 107
    assert line.endswith(b"\r\n")
