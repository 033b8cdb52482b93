"""PROXY headers: those that we write, read back by a decoder that knows only the specification, and
those that we read, built from it."""

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.parser import proxy_header
from sniproxy.parser.alert import Refusal
from sniproxy.parser.proxy_header import (
    MAX_VERSION_2,
    Header,
    crc32c,
    decode,
    version_1,
    version_2,
)
from tests.hello import hello


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


# Reading.


def outcome(received: bytes) -> Header | str | None:
    try:
        return decode(received)
    except Refusal as refused:
        return refused.reason if refused.alert is None else "an alert"


def in_any_cut(wire: bytes) -> Header | str | None:
    """Read what arrives byte by byte, and then all at once; both must say the same."""
    said: Header | str | None = None
    for size in range(len(wire) + 1):
        said = outcome(wire[:size])
        if said is not None:
            break
    whole = outcome(wire)
    assert said == whole
    assert outcome(memoryview(wire)) == whole
    if isinstance(whole, Header):
        # What follows is not looked at.
        assert outcome(wire + b"\x16\3\1") == whole
        assert outcome(wire + wire) == whole
    return whole


def block(command: int, family: int, rest: bytes, *, claimed: int | None = None) -> bytes:
    """Build a header of version 2 as section 2.2 has it."""
    size = len(rest) if claimed is None else claimed
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", command, family, size) + rest


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(command: int, family: int, rest: bytes, behind: bytes = b"") -> bytes:
    """Put a PP2_TYPE_CRC32C of the whole between two parts, bit by bit as RFC 3309 has it."""
    without = block(command, family, rest + tlv(3, bytes(4)) + behind)
    crc = 0xFFFFFFFF
    for byte in without:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return block(command, family, rest + tlv(3, struct.pack("!I", crc ^ 0xFFFFFFFF)) + behind)


IPV4 = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + struct.pack("!HH", 40000, 443)
FROM, TO = ("192.0.2.1", 40000), ("198.51.100.2", 443)
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(15) + b"\1" + b"\0\1\0\2"
UNIX = b"/run/client".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")


@given(pair=pairs)
def test_what_is_written_is_read(pair: tuple[tuple[str, int], tuple[str, int]]) -> None:
    for wire in (version_1(*pair), version_2(*pair, "a.example")):
        header = in_any_cut(wire)
        assert isinstance(header, Header)
        assert header.length == len(wire)
        addresses = []
        ends = header.source, header.destination
        for address, (text_of, port) in zip(ends, (one[:2] for one in pair), strict=True):
            assert isinstance(address, tuple)
            assert address[1] == port
            addresses.append((ipaddress.ip_address(address[0]), ipaddress.ip_address(text_of)))
        mapped = [getattr(sent, "ipv4_mapped", None) for _, sent in addresses]
        for at, (read, sent) in enumerate(addresses):
            assert read == (mapped[at] if all(mapped) else sent)
        assert header.tlvs == b""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"TCP4 192.0.2.1 198.51.100.2 40000 443", (FROM, TO)),
        (b"TCP4 0.0.0.0 255.255.255.255 0 65535", (("0.0.0.0", 0), ("255.255.255.255", 65535))),
        (b"TCP6 2001:DB8::1 ::1 1 2", (("2001:db8::1", 1), ("::1", 2))),
        (b"TCP6 ::ffff:192.0.2.1 ::1 1 2", (("::ffff:192.0.2.1", 1), ("::1", 2))),
        (b"TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535", "longest"),
        (b"UNKNOWN", (None, None)),
        (b"UNKNOWN what \0 ever", (None, None)),
        (b"UNKNOWN " + b"x" * 91, (None, None)),
        (b"UNKNOWN " + b"x" * 92, "bad_proxy_header"),
        (b"UNKNOWNS", "bad_proxy_header"),
        (b"TCP4 192.0.2.1 198.51.100.2 40000", "bad_proxy_header"),
        (b"TCP4 192.0.2.1 198.51.100.2 40000 443 ", "bad_proxy_header"),
        (b"TCP4  192.0.2.1 198.51.100.2 40000 443", "bad_proxy_header"),
        (b"TCP4 192.0.2.1 198.51.100.2 040000 443", "bad_proxy_header"),
        (b"TCP4 192.0.2.1 198.51.100.2 +1 443", "bad_proxy_header"),
        (b"TCP4 192.0.2.1 198.51.100.2 65536 443", "bad_proxy_header"),
        (b"TCP4 192.0.2.1 198.51.100.2 1 99999", "bad_proxy_header"),
        (b"TCP4 192.0.2.256 198.51.100.2 1 2", "bad_proxy_header"),
        (b"TCP4 192.0.2 198.51.100.2 1 2", "bad_proxy_header"),
        (b"TCP4 ::1 ::1 1 2", "bad_proxy_header"),
        (b"TCP6 192.0.2.1 198.51.100.2 1 2", "bad_proxy_header"),
        (b"TCP6 fe80::1%lo ::1 1 2", "bad_proxy_header"),
        (b"TCP5 192.0.2.1 198.51.100.2 1 2", "bad_proxy_header"),
        (b"UDP4 192.0.2.1 198.51.100.2 1 2", "bad_proxy_header"),
        (b"tcp4 192.0.2.1 198.51.100.2 1 2", "bad_proxy_header"),
        (b"", "bad_proxy_header"),
        (b"TCP4 192.0.2.1 198.51.100.2 1 2\n", "bad_proxy_header"),
        ("TCP4 192.0.2.١ 198.51.100.2 1 2".encode(), "bad_proxy_header"),
    ],
)
def test_lines(line: bytes, expected: object) -> None:
    wire = b"PROXY " + line + b"\r\n"
    header = in_any_cut(wire)
    if isinstance(header, Header):
        assert header.length == len(wire) <= 107
        if expected == "longest":
            expected = (("ffff:" * 7 + "ffff", 65535),) * 2
        assert (header.source, header.destination, header.tlvs) == (*expected, b"")  # type: ignore[misc]
    else:
        assert header == expected


def test_a_line_that_does_not_end() -> None:
    assert outcome(b"PROXY " + b"x" * 100) is None
    assert outcome(b"PROXY " + b"x" * 101) == "bad_proxy_header"
    assert outcome(b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n" + hello("a")) == "bad_proxy_header"


@pytest.mark.parametrize(
    "wire", [b"\x16\3\1\2\0", b"GET / HTTP/1.1\r\n", b"\r\n\r\n\0\r\nQUIT\r", b"PROXIES", b"proxy "]
)
def test_what_is_no_header(wire: bytes) -> None:
    assert in_any_cut(wire) == "no_proxy_header"


def test_nothing_is_no_header_yet() -> None:
    assert outcome(b"") is None


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (block(0x21, 0x11, IPV4), (FROM, TO, b"")),
        (block(0x21, 0x21, IPV6), (("2001:db8::1", 1), ("::1", 2), b"")),
        (block(0x21, 0x31, UNIX), (b"/run/client", b"\0abstract", b"")),
        # The connection's own are meant, whatever is said of them.
        (block(0x20, 0x11, IPV4 + tlv(5, b"id")), (None, None, b"")),
        (block(0x20, 0, b""), (None, None, b"")),
        (block(0x20, 0xFF, b"\1\2\3"), (None, None, b"")),
        (block(0x21, 0, b""), (None, None, b"")),
        (block(0x21, 0, tlv(5, b"id")), (None, None, tlv(5, b"id"))),
        (block(0x21, 0x12, IPV4), (None, None, b"")),
        (block(0x21, 0x22, IPV6 + tlv(5, b"id")), (None, None, tlv(5, b"id"))),
        (block(0x21, 0x32, UNIX), (None, None, b"")),
        # Versions, commands and families that there are not.
        (block(0x11, 0x11, IPV4), "bad_proxy_header"),
        (block(0x31, 0x11, IPV4), "bad_proxy_header"),
        (block(0x22, 0x11, IPV4), "bad_proxy_header"),
        (block(0x2F, 0, b""), "bad_proxy_header"),
        (block(0x21, 0x10, IPV4), "bad_proxy_header"),
        (block(0x21, 0x13, IPV4), "bad_proxy_header"),
        (block(0x21, 0x41, IPV4), "bad_proxy_header"),
        # Addresses that are not all there, and TLVs that do not fit.
        (block(0x21, 0x11, IPV4[:-1]), "bad_proxy_header"),
        (block(0x21, 0x21, IPV6[:-1]), "bad_proxy_header"),
        (block(0x21, 0x31, UNIX[:-1]), "bad_proxy_header"),
        (block(0x21, 0x11, b""), "bad_proxy_header"),
        (block(0x21, 0x11, IPV4 + b"\4"), "bad_proxy_header"),
        (block(0x21, 0x11, IPV4 + b"\4\0"), "bad_proxy_header"),
        (block(0x21, 0x11, IPV4 + b"\4\0\1"), "bad_proxy_header"),
        (block(0x21, 0x11, IPV4 + tlv(4, b"x") + b"\4\0\2x"), "bad_proxy_header"),
    ],
)
def test_blocks(wire: bytes, expected: object) -> None:
    header = in_any_cut(wire)
    if isinstance(header, Header):
        assert header.length == len(wire)
        assert (header.source, header.destination, header.tlvs) == expected
    else:
        assert header == expected


def test_the_longest_block() -> None:
    room = MAX_VERSION_2 - 16 - len(IPV4) - 3
    wire = block(0x21, 0x11, IPV4 + tlv(0xE0, bytes(room)))
    header = outcome(wire)
    assert isinstance(header, Header)
    assert (header.length, len(header.tlvs)) == (MAX_VERSION_2, room + 3)
    # A longer one is refused when its length is known, not when it has come.
    assert outcome(block(0x21, 0x11, b"", claimed=MAX_VERSION_2 - 15)) == "bad_proxy_header"
    assert outcome(block(0x20, 0x11, b"", claimed=65535)) == "bad_proxy_header"


def test_which_tlvs_go_on() -> None:
    """The table in docs/reference/proxy-header.md."""
    passed = {1, 5, 0x20, *range(0xE0, 0xF8)}
    for kind in set(range(256)) - {3}:
        for value in (b"", b"\0", b"value" * 40):
            one = tlv(kind, value)
            header = outcome(block(0x21, 0x11, IPV4 + tlv(4, b"pad") + one + tlv(5, b"id")))
            assert isinstance(header, Header)
            assert header.tlvs == (one if kind in passed else b"") + tlv(5, b"id")


def test_checksums() -> None:
    # The check value of the catalogue of parametrised CRC algorithms, CRC-32/ISCSI.
    assert crc32c(b"123456789") == 0xE3069283
    good = with_checksum(0x21, 0x11, IPV4 + tlv(5, b"id"), tlv(0xEA, b"vpce"))
    header = in_any_cut(good)
    assert isinstance(header, Header)
    assert (header.source, header.tlvs) == (FROM, tlv(5, b"id") + tlv(0xEA, b"vpce"))
    for at in range(12, len(good)):
        for bit in (1, 0x80):
            bad = bytearray(good)
            bad[at] ^= bit
            changed = outcome(bytes(bad))
            # LOCAL: the whole block is to be discarded, its checksum as well. A length that is
            # another waits for more, or checks less.
            if bad[12] == 0x20 or at in (14, 15):
                continue
            if not isinstance(changed, str):
                # Its type is no checksum's any more.
                assert bad[16 + len(IPV4) + 5] != 3, at
    short = block(0x21, 0x11, IPV4 + tlv(3, bytes(3)))
    long = block(0x21, 0x11, IPV4 + tlv(3, bytes(5)))
    assert outcome(short) == outcome(long) == "bad_proxy_header"
    twice = with_checksum(0x21, 0x11, IPV4, tlv(3, bytes(4)))
    assert outcome(twice) == "bad_proxy_header"


def test_one_checksum_is_calculated(monkeypatch: pytest.MonkeyPatch) -> None:
    """More could all be right, and 16 KiB of them would take seconds."""
    header = with_checksum(0x21, 0x11, IPV4, tlv(3, bytes(4)))
    calculated = []
    monkeypatch.setattr(
        proxy_header, "crc32c", lambda data: calculated.append(data) or crc32c(data)
    )
    assert outcome(header) == "bad_proxy_header"
    assert len(calculated) == 1


@pytest.mark.parametrize("more", [-1, 0, 1, 500])
def test_what_was_accepted_is_not_too_long_when_it_goes_on(more: int) -> None:
    """By our host name; then the last TLVs stay behind, each as a whole."""
    own = len(version_2(FROM, TO, "a.example"))
    room = MAX_VERSION_2 - own - 2 * 3 - 500
    tlvs = tlv(0xEA, bytes(room)) + tlv(0xEB, bytes(500 + more))
    header = decode(version_2(FROM, TO, "a.example", tlvs))
    assert isinstance(header, Header)
    assert header.tlvs == (tlvs if more <= 0 else tlv(0xEA, bytes(room)))


def test_tlvs_and_unix_addresses_are_written() -> None:
    wire = version_2(b"/run/client", b"\0abstract", "a.b", tlv(5, b"id"))
    assert wire == block(0x21, 0x31, UNIX + tlv(2, b"a.b") + tlv(5, b"id"))
    assert version_1(b"/run/client", b"\0abstract") == b"PROXY UNKNOWN\r\n"
    assert version_2(FROM, TO, "", tlv(1, b"h2")) == block(0x21, 0x11, IPV4 + tlv(1, b"h2"))
    # Behind LOCAL nobody would read any.
    assert version_2("", "/run/socket", "", tlv(5, b"id")) == block(0x21, 0, tlv(5, b"id"))
