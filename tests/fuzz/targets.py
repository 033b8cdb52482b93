"""What the fuzzers call: bytes in, and an AssertionError where something not documented happens.

Each target takes any bytes, has the code under test make something of them, and compares: with the
documented outcomes, with a second implementation that knows only the specification, and with what
must hold of every outcome.
"""

import array
import fcntl
import ipaddress
import math
import os
import socket
import struct

from sniproxy.dataplane.state import (
    MAX_UNSENT,
    MOST,
    READABLE,
    Arriving,
    Leaving,
    Relayed,
    StateError,
    decode,
    descriptors,
    encode,
)
from sniproxy.parser.alert import Refusal
from sniproxy.parser.client_hello import ClientHelloParser, usual_host_name
from sniproxy.parser.host_name import MAX_LENGTH, canonical
from sniproxy.parser.proxy_header import (
    MAX_VERSION_1,
    MAX_VERSION_2,
    Header,
    SocketAddress,
    version_1,
    version_2,
)
from sniproxy.parser.proxy_header import decode as read_header
from sniproxy.process.parcel import take
from sniproxy.tools.hostname import MAX_LABEL, InvalidNameError, to_ascii
from tests.hello import hello
from tests.test_client_hello import (
    Outcome,
    reference,
    reference_name,
    reference_validates,
)


def client_hello(data: bytes) -> None:
    """Feed the parser in cuts that the input chooses: a count, that many sizes, then the wire."""
    count = data[0] % 8 if data else 0
    sizes = [size + 1 for size in data[1 : 1 + count]] or [1 << 20]
    wire = data[1 + count :]
    outcome: Outcome = None
    parser = ClientHelloParser()
    at = turn = 0
    reason = "none"
    try:
        while at < len(wire) and outcome is None:
            begin, at = at, at + sizes[turn % len(sizes)]
            turn += 1
            outcome = parser.feed(memoryview(wire)[begin:at])
    except Refusal as refused:
        outcome = (refused.alert, 0)
        reason = refused.reason
    assert reason.replace("_", "").isalpha()
    buffer = bytearray(wire + bytes(1 << 17))
    usual = usual_host_name(buffer, len(wire))
    if usual is not None:
        whole = ClientHelloParser()
        assert (whole.feed(wire), whole.validates()) == (usual, False)
    assert outcome == reference(wire[:at])
    if isinstance(outcome, str):
        assert parser.validates() is reference_validates(bytes(parser._message))
        # It is its own canonical form, and asking for it gives it again.
        assert ClientHelloParser().feed(hello(outcome)) == outcome


def host_name(data: bytes) -> None:
    """Take the bytes as a name on the wire, and as a name that somebody types."""
    expected = reference_name(data)
    assert canonical(data) == (expected if isinstance(expected, str) else None)
    typed = data.decode("utf-8", "surrogateescape")
    try:
        name = to_ascii(typed)
    except InvalidNameError:
        return
    assert canonical(name.encode("ascii")) == name
    assert len(name) <= MAX_LENGTH
    assert all(0 < len(label) <= MAX_LABEL for label in name.split("."))
    assert to_ascii(name) == name
    if typed.isascii():
        assert name == typed.lower().removesuffix(".")


def proxy_header(data: bytes) -> None:
    """Make two addresses and a host name of the bytes; read both headers back."""
    data = data.ljust(40, b"\0")
    family = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)[data[0] % 3]
    source, destination = (
        _address(family, data[1], data[2:20]),
        _address(family, data[0] >> 4, data[20:38]),
    )
    host = (canonical(data[38:292]) or "a") if len(data) > 40 else ""
    expected = _expected(source, destination)
    line = version_1(source, destination)
    assert len(line) <= 107
    assert _decode_1(line) == expected
    block = version_2(source, destination, host)
    assert _decode_2(block) == (expected, host)


def announcement(data: bytes) -> None:
    """Read a PROXY header in cuts that the input chooses, and as a whole: both say the same, which
    is what the specification does."""
    step, wire = (data[0] % 40 + 1, data[1:]) if data else (1, b"")
    outcome: Header | str | None = None
    at = 0
    while at < len(wire) and outcome is None:
        at += step
        outcome = _announced(wire[:at])
    assert outcome == _announced(wire)
    assert outcome in ("no_proxy_header", "bad_proxy_header", None) or isinstance(outcome, Header)
    if not isinstance(outcome, Header):
        assert outcome is not None or len(wire) < MAX_VERSION_2
        assert outcome is not None or not wire.startswith(b"PROXY ") or len(wire) < MAX_VERSION_1
        return
    header = wire[: outcome.length]
    assert len(header) == outcome.length
    # A byte less is none yet, and what is behind it changes nothing.
    assert _announced(header[:-1]) is None
    assert _announced(header + b"\x16\3\1") == outcome
    ends = outcome.source, outcome.destination
    if not isinstance(outcome.source, tuple):
        assert outcome.source is None or header[13] == 0x31
    elif header.startswith(b"PROXY "):
        assert _expected(*ends) == _expected(*_words(header))
    else:
        # Written again, it says the same.
        assert _decode_2(version_2(*ends, "a")) == (_expected(*ends), "a")
    # What goes on is whole, and came so.
    passed = outcome.tlvs
    while passed:
        size = 3 + int.from_bytes(passed[1:3], "big")
        assert passed[:size] in header
        assert len(passed) >= size
        passed = passed[size:]


def _announced(received: bytes) -> Header | str | None:
    try:
        return read_header(received)
    except Refusal as refused:
        return refused.reason


def _words(line: bytes) -> list[tuple[str, int]]:
    """Take the words of a line, whose addresses may be written in another way."""
    _, _, source, destination, *ports = line.decode("ascii").split()
    return [(source, int(ports[0])), (destination, int(ports[1]))]


def _address(family: socket.AddressFamily, kind: int, data: bytes) -> SocketAddress:
    """Give an address as a socket of that family has it."""
    port = int.from_bytes(data[16:18], "big")
    if family == socket.AF_INET:
        return socket.inet_ntop(family, data[:4]), port
    if family == socket.AF_INET6:
        address = bytes(10) + b"\xff\xff" + data[:4] if kind & 1 else data[:16]
        return socket.inet_ntop(family, address), port, 0, 0
    return (data[:16].hex(), "", None)[kind % 3]


Endpoints = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int] | None


def _expected(*ends: SocketAddress) -> list[Endpoints]:
    """Say what a backend must learn: nothing, or both ends in one family."""
    pairs: list[Endpoints] = []
    for end in ends:
        if not isinstance(end, tuple):
            return [None, None]
        pairs.append((ipaddress.ip_address(end[0]), end[1]))
    mapped = [getattr(pair[0], "ipv4_mapped", None) if pair else None for pair in pairs]
    if all(mapped):
        return [(address, pair[1]) for address, pair in zip(mapped, pairs, strict=True) if pair]
    return pairs


def _decode_1(line: bytes) -> list[Endpoints]:
    assert line.startswith(b"PROXY ")
    assert line.endswith(b"\r\n")
    words = line[:-2].decode("ascii").split(" ")
    if words[1] == "UNKNOWN":
        return [None, None]
    addresses = [ipaddress.ip_address(word) for word in words[2:4]]
    ports = [int(word) for word in words[4:6]]
    assert len(words) == 6
    family = {4: "TCP4", 6: "TCP6"}
    if len({address.version for address in addresses}) == 1:
        assert words[1] == family[addresses[0].version]
    return list(zip(addresses, ports, strict=True))


def _decode_2(block: bytes) -> tuple[list[Endpoints], str]:
    assert block[:12] == bytes.fromhex("0d0a0d0a000d0a515549540a")
    command, family, size = struct.unpack("!BBH", block[12:16])
    rest = block[16:]
    assert len(rest) == size
    ends: list[Endpoints] = [None, None]
    if command == 0x21:
        width = {0x11: 4, 0x21: 16}[family]
        addresses = [ipaddress.ip_address(rest[at : at + width]) for at in (0, width)]
        ports = struct.unpack("!HH", rest[2 * width : 2 * width + 4])
        ends = list(zip(addresses, ports, strict=True))
        rest = rest[2 * width + 4 :]
    else:
        assert (command, family) == (0x20, 0)
    if not rest:
        return ends, ""
    kind, length = struct.unpack("!BH", rest[:3])
    assert (kind, length) == (2, len(rest) - 3)
    return ends, rest[3:].decode("ascii")


NOW = 1000.0


def handover(data: bytes) -> None:
    """Decode a message, and take it with descriptors of kinds that the first bytes choose."""
    kinds, message = (
        data[1 : 1 + data[0] % 8] if data else b"",
        data[1 + data[0] % 8 :] if data else b"",
    )
    try:
        states = decode(message, NOW)
    except StateError:
        states = []
    else:
        assert 1 <= len(states) <= MOST
        number, count = struct.unpack("!HH", message[:4])
        assert (number in READABLE, count) == (True, len(states))
        assert descriptors(states) <= 2 * MOST + 1
        # It says the same in its one way to be written, but for what a float can be.
        assert decode(encode(states), NOW) == states
        for state in states:
            assert 0 <= state.unsent <= 2 * MAX_UNSENT
            if isinstance(state, Relayed | Arriving):
                assert math.isfinite(state.accepted_at)
                assert 0 <= state.accepted_at <= NOW
            if isinstance(state, Relayed):
                assert not state.host or canonical(state.host.encode("ascii")) == state.host
            if isinstance(state, Leaving):
                assert state.left is None or state.left >= 0
    _take(kinds, message, len(states))


def _take(kinds: bytes, message: bytes, count: int) -> None:
    """Send it, and see that each connection is there or lost, and nothing stays open."""
    files = [_descriptor(kind) for kind in kinds]
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender, receiver:
        before = os.dup(0)
        os.close(before)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        sender.sendmsg([message], rights if files else [])
        taken = take(receiver, NOW)
        if taken is None:
            assert not message
            assert not files
        else:
            assert taken.lost + len(taken.connections) >= max(1, count if taken.connections else 0)
            assert bool(taken.lost) == bool(taken.problem)
            for carried in taken.connections:
                assert len(carried.sockets) == carried.state.descriptors
                assert len(carried.unsent) == carried.state.unsent
                for one in carried.sockets:
                    one.close()
        after = os.dup(0)
        os.close(after)
        assert after == before, "a descriptor stays open"
    for fd in files:
        os.close(fd)


def _descriptor(kind: int) -> int:
    """Make a descriptor of one of a few kinds, only some of which are what they should be."""
    if kind % 6 == 0:
        one = socket.socket()
    elif kind % 6 == 1:
        one = socket.socket(socket.AF_UNIX)
    elif kind % 6 == 2:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    elif kind % 6 == 3:
        memory = os.memfd_create("fuzz", os.MFD_ALLOW_SEALING)
        os.truncate(memory, kind // 6)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 15)
        return memory
    elif kind % 6 == 4:
        return os.memfd_create("fuzz", os.MFD_ALLOW_SEALING)
    else:
        return os.open("/dev/null", os.O_RDWR)
    return one.detach()


TARGETS = {
    one.__name__: one for one in (client_hello, host_name, proxy_header, announcement, handover)
}
