"""The parser: whole, byte by byte, every prefix, any cut, and against a second implementation."""

import itertools
import ssl
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sniproxy.parser import client_hello
from sniproxy.parser.alert import Alert, Refusal
from sniproxy.parser.client_hello import ClientHelloParser, WholeHelloParser, usual_host_name
from tests.covered import untraced
from tests.hello import extension, hello, message, records, server_name

Outcome = str | tuple[int, int] | None

# A whole hello for the host a.
FIXTURE = bytes.fromhex(
    "16 0301 0039"  # handshake record, 57 bytes
    "01 000035"  # ClientHello, 53 bytes
    "0303" + "55" * 32 +  # legacy_version, random
    "00"  # no session id
    "0002 1301"  # one cipher suite
    "01 00"  # null compression
    "000a"  # extensions, 10 bytes
    "0000 0006 0004 00 0001 61"  # server_name: list, host_name, "a"
)  # fmt: skip


def parse(*pieces: bytes) -> Outcome:
    """Give the host name, the alert, or None for "needs more"."""
    parser = ClientHelloParser()
    try:
        for piece in pieces:
            host = parser.feed(piece)
            if host is not None:
                return host
    except Refusal as refused:
        return (refused.alert, 0)
    return None


def alert(number: int) -> Outcome:
    return (number, 0)


class ShortError(Exception):
    """The reference needs more bytes."""


def reference(wire: bytes) -> Outcome:
    """Parse a whole prefix by the rules of the specification, plainly and from the start."""
    handshake = b""
    at = 0
    broken = None
    while at < len(wire):
        if wire[at] != 22:
            broken = 10
            break
        if len(wire) < at + 5:
            break
        length = int.from_bytes(wire[at + 3 : at + 5], "big")
        if length > 2**14:
            broken = 22
            break
        if length == 0:
            broken = 50
            break
        handshake += wire[at + 5 : at + 5 + length]
        at += 5 + length
    try:
        return reference_handshake(handshake)
    except ShortError:
        return None if broken is None else (broken, 0)


def reference_handshake(data: bytes) -> Outcome:
    position = 0

    def number(size: int, end: int | None) -> int:
        nonlocal position
        if end is not None and position + size > end:
            raise Refusal(Alert.DECODE_ERROR, "")
        if position + size > len(data):
            raise ShortError
        position += size
        return int.from_bytes(data[position - size : position], "big")

    def skip(size: int, end: int) -> None:
        nonlocal position
        if position + size > end:
            raise Refusal(Alert.DECODE_ERROR, "")
        position += size

    try:
        if number(1, None) != 1:
            return (10, 0)
        end = number(3, None)
        end += position
        skip(34, end)
        skip(number(1, end), end)
        skip(number(2, end), end)
        skip(number(1, end), end)
        if position == end:
            return (112, 0)
        if number(2, end) != end - position:
            return (50, 0)
        while position < end:
            # Refused as soon as it is known that no header fits any more.
            if end - position < 4:
                return (50, 0)
            kind = number(2, end)
            size = number(2, end)
            if kind != 0:
                skip(size, end)
                continue
            if position + size > end:
                return (50, 0)
            end = position + size
            if number(2, end) != end - position:
                return (50, 0)
            while position < end:
                if end - position < 3:
                    return (50, 0)
                name_type = number(1, end)
                size = number(2, end)
                start = position
                skip(size, end)
                if name_type == 0:
                    if position > len(data):
                        raise ShortError
                    return reference_name(data[start:position])
            return (112, 0)
    except Refusal as refused:
        return (refused.alert, 0)
    return (112, 0)


def reference_name(name: bytes) -> Outcome:
    text = name.decode("latin-1").lower().removesuffix(".")
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    labels = text.split(".")
    if not 1 <= len(text) <= 254 or not set(text) <= letters:
        return (112, 0)
    if any(not label or label.startswith(("-", "_")) for label in labels):
        return (112, 0)
    return text


def reference_validates(message: bytes) -> bool | None:
    """Say of a handshake message from its start, or a piece of it, that has a host name, whether
    its first ALPN extension has the one protocol acme-tls/1, plainly."""
    whole = len(message) >= 4 + int.from_bytes(message[1:4], "big")
    at = 38
    for size in (1, 2, 1):
        at += size + int.from_bytes(message[at : at + size], "big")
    end = at + 2 + int.from_bytes(message[at : at + 2], "big")
    at += 2
    while at + 4 <= min(end, len(message)):
        data = message[at + 4 : at + 4 + int.from_bytes(message[at + 2 : at + 4], "big")]
        at += 4 + int.from_bytes(message[at + 2 : at + 4], "big")
        if message[at - len(data) - 4 : at - len(data) - 2] == b"\0\x10" and at <= len(message):
            return data == b"\0\x0b\x0aacme-tls/1"
    return False if whole else None


def protocols(*names: bytes) -> bytes:
    """Build an ALPN extension (RFC 7301 section 3.1)."""
    listed = b"".join(bytes([len(name)]) + name for name in names)
    return extension(16, len(listed).to_bytes(2, "big") + listed)


SNI = server_name((0, b"a.example"))


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (SNI + protocols(b"acme-tls/1"), True),
        (protocols(b"acme-tls/1") + SNI, True),
        (extension(10, b"abc") + SNI + extension(21, bytes(99)) + protocols(b"acme-tls/1"), True),
        (SNI + protocols(b"acme-tls/1", b"h2"), False),
        (SNI + protocols(b"h2", b"acme-tls/1"), False),
        (SNI + protocols(b"acme-tls/1", b"acme-tls/1"), False),
        (SNI + protocols(b"acme-tls/11"), False),
        (SNI + protocols(b"ACME-TLS/1"), False),
        (SNI + protocols(b"h2") + protocols(b"acme-tls/1"), False),
        (SNI + extension(21, b"\0\x0b\x0aacme-tls/1"), False),
        (SNI + extension(16, b"\0\x0c\x0aacme-tls/1"), False),
        (SNI + extension(16, b"\0\x0b\x0aacme-tls/1\0"), False),
        (SNI + b"\0\x10\0\xffacme-tls/1", False),
        (SNI, False),
    ],
)
def test_who_validates_a_host(extensions: bytes, expected: bool) -> None:
    """Nobody but who offers this one protocol: in any cut, and in records of any size."""
    made = message(extensions)
    for size in (2**14, 7, 1):
        wire = records(made, size)
        for step in (len(wire), 1, 50):
            pieces = [wire[at : at + step] for at in range(0, len(wire), step)]
            first, whole = ClientHelloParser(), WholeHelloParser()
            while first.feed(pieces[0]) is None:
                assert whole.feed(pieces.pop(0)) is None
            said = first.validates()
            assert said is None or said is expected
            while (host := whole.feed(pieces.pop(0))) is None:
                pass
            assert (host, whole.validates(), pieces) == ("a.example", expected, [])


def usual(wire: bytes) -> str | None:
    return usual_host_name(bytearray(wire + bytes(1 << 17)), len(wire))


def test_the_usual_hello_takes_the_straight_way() -> None:
    """Those of real clients do, and nothing that is cut, in several records, or a validation."""
    wire = real_hello("WWW.Example.com")
    assert usual(wire) == "www.example.com"
    assert usual(FIXTURE) == "a"
    assert usual(wire + b"\x14\3\3\0\1\1") == "www.example.com"
    for size in range(len(wire)):
        assert usual(wire[:size]) is None
    for unusual in (
        hello("a.example", record=40),
        records(message(SNI + protocols(b"acme-tls/1"))),
        records(message(server_name((1, b"x"), (0, b"a.example")))),
        records(message(None)),
        records(message(b"")),
        hello("_a"),
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        assert usual(unusual) is None


def test_what_is_known_of_each_prefix() -> None:
    """The answer comes with the last byte of the extension, or of the hello."""
    for extensions in (SNI + protocols(b"acme-tls/1") + extension(21, bytes(9)), SNI + SNI):
        made = message(extensions)
        for size in range(made.index(b"a.example") + 9, len(made) + 1):
            parser = ClientHelloParser()
            assert parser.feed(records(message(extensions))[: 5 + size]) == "a.example"
            assert parser.validates() is reference_validates(made[:size])


def test_fixture() -> None:
    assert parse(FIXTURE) == "a"


def real_hello(name: str) -> bytes:
    """Have OpenSSL make a hello."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    output = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), output, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return output.read()


def test_real_client_whole_and_byte_by_byte() -> None:
    wire = real_hello("WWW.Example.com")
    assert parse(wire) == "www.example.com"
    assert parse(*(wire[at : at + 1] for at in range(len(wire)))) == "www.example.com"


def test_every_prefix_of_a_real_hello_needs_more_or_is_decided() -> None:
    wire = real_hello("www.example.com")
    outcomes = [parse(wire[:size]) for size in range(len(wire) + 1)]
    decided = outcomes.index("www.example.com")
    assert outcomes[:decided] == [None] * decided
    assert set(outcomes[decided:]) == {"www.example.com"}
    # Decided before the rest of the hello has arrived.
    assert decided < len(wire)


def test_every_split() -> None:
    wire = hello("a.example")
    for at in range(len(wire)):
        assert parse(wire[:at], wire[at:]) == "a.example"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 100])
def test_fragmented_records(size: int) -> None:
    assert parse(hello("a.example", record=size, padding=500)) == "a.example"


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"G", 10),
        (b"\x15\3\3\0\2\2\x28", 10),
        (b"\x16\3\1\0\0", 50),
        (b"\x16\3\1\x40\1", 22),
        (b"\x16\3\1\0\1\2", 10),
        (hello("a")[:5] + b"\2", 10),
        (records(message(server_name((0, b"a"))), 20)[:25] + b"\x14\3\3\0\1\1", 10),
        (records(message(server_name((0, b"a"))), 20)[:25] + b"\x16\3\3\0\0", 50),
        (records(message(None)), 112),
        (records(message(b"")), 112),
        (records(message(extension(16, b"abc"))), 112),
        (records(message(server_name())), 112),
        (records(message(server_name((1, b"abc")))), 112),
        (records(message(extension(0, b""))), 50),
        (records(message(extension(0, b"\0\4\0\0\1"))), 50),
        (records(message(extension(0, b"\0\4\0\0\1ab"))), 50),
        (records(message(extension(0, b"\0\4\0\0\2a"))), 50),
        (records(message(b"\0\0\0\xff\0")), 50),
        (records(message(b"\0\1\0")), 50),
        (records(b"\1\0\0\x0a" + bytes(10)), 50),
        (records(b"\1\0\0\x24" + bytes(34) + b"\xff\0"), 50),
        (hello("_a"), 112),
        (hello("_.a"), 112),
        (hello("a._b"), 112),
        (hello("."), 112),
        (hello(".."), 112),
        (hello("a/b"), 112),
        (hello("a\0b"), 112),
        (hello("a.."), 112),
        (hello("-a"), 112),
        (hello("a.-b"), 112),
        (hello("[::1]"), 112),
        (hello("a:443"), 112),
        (hello(""), 112),
        (hello("b\xfccher"), 112),
        (hello("a" * 255), 112),
    ],
)
def test_refusals(wire: bytes, expected: int) -> None:
    assert parse(wire) == alert(expected)
    assert parse(*(wire[at : at + 1] for at in range(len(wire)))) == alert(expected)


def test_other_name_types_are_skipped_and_the_first_host_name_counts() -> None:
    for skipped in (b"\xff", b"", b"\0" * 255, b"\xff" * 256, b"\0" * 1000):
        wire = records(message(server_name((7, skipped), (0, b"First"), (0, b"second"))))
        assert parse(wire) == "first"
    assert parse(hello("a" * 254)) == "a" * 254


def test_wire_bytes_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_hello, "MAX_WIRE_BYTES", 100)
    assert parse(hello("a.example", padding=500)[:100]) is None
    assert parse(hello("a.example", padding=500)[:101]) == alert(50)


class Counted(bytearray):
    """The parser's message, which counts the bytes that are read from it or put into it."""

    touched = 0

    def _count(self, size: int) -> None:
        Counted.touched += size

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        found = super().__getitem__(key)
        self._count(len(found) if isinstance(key, slice) else 1)
        return found

    def __iadd__(self, more):  # type: ignore[no-untyped-def]
        self._count(len(more))
        return super().__iadd__(more)

    def __iter__(self):  # type: ignore[no-untyped-def]
        self._count(len(self))
        return super().__iter__()

    def __bytes__(self) -> bytes:
        self._count(len(self))
        return bytes(memoryview(self))


def cost(wire: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Count the lines that the parser runs, and the bytes of the message that it touches, for a
    hello fed byte by byte."""
    lines = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal lines
        lines += event == "line"
        return trace

    monkeypatch.setattr(client_hello, "bytearray", Counted, raising=False)
    Counted.touched = 0
    with untraced():
        sys.settrace(trace)  # type: ignore[arg-type]
        assert parse(*(wire[at : at + 1] for at in range(len(wire)))) == "a.example"
    return lines, Counted.touched


def test_byte_by_byte_costs_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    small = cost(hello("a.example", padding=2000), monkeypatch)
    large = cost(hello("a.example", padding=20000), monkeypatch)
    assert small[1] > 2000
    for one, other in zip(small, large, strict=True):
        assert other < 11 * one
    # Each byte is put into the message once; of what is in it, only the name and the lengths are
    # read: a byte of padding is never looked at again.
    assert large[1] < 1.1 * 20_000 + 200


@pytest.mark.parametrize(
    "many",
    [
        lambda count: extension(9, b"") * count + server_name((0, b"a.example")),
        lambda count: server_name(*[(9, b"x")] * count, (0, b"a.example")),
    ],
    ids=["extensions", "names"],
)
def test_many_small_parts_cost_linear_time(
    monkeypatch: pytest.MonkeyPatch, many: Callable[[int], bytes]
) -> None:
    """Where it had to stop is where it goes on, and not at the first of them."""
    small = cost(records(message(many(100))), monkeypatch)
    large = cost(records(message(many(1000))), monkeypatch)
    for one, other in zip(small, large, strict=True):
        assert other < 11 * one


def test_the_largest_hello_fits_the_cap() -> None:
    """Every vector as long as its length field lets it, the whole in records of one byte each."""
    fill = extension(21, bytes(65535 - 4 - 4 - 9 - 5))
    body = message(fill + server_name((0, b"a.example")), session=bytes(255), ciphers=32767)
    wire = records(body, 1)
    assert parse(wire) == "a.example"
    assert 780_000 < len(wire) <= client_hello.MAX_WIRE_BYTES
    assert client_hello.MAX_WIRE_BYTES == 2**20


def test_what_claims_to_be_longer_is_refused() -> None:
    """A hello of 16 MB: no extensions block can end where it does."""
    start = b"\1\xff\xff\xff" + bytes(34) + b"\0" + b"\0\2\x13\1" + b"\1\0"
    assert parse(records(start, 1)) is None
    assert parse(records(start + b"\xff\xff", 1)) == alert(50)


names = st.from_regex(rb"[A-Za-z0-9_./-]{1,40}", fullmatch=True)
extensions = st.lists(
    st.one_of(
        st.builds(extension, st.integers(0, 60), st.binary(max_size=30)),
        st.builds(lambda name: server_name((0, name)), names),
        st.builds(lambda kind, name: server_name((kind, name)), st.integers(0, 2), names),
    ),
    max_size=5,
).map(b"".join)
hellos = st.builds(
    lambda parts, session, ciphers, size: records(
        message(parts, session=session, ciphers=ciphers), size
    ),
    st.one_of(st.none(), extensions),
    st.binary(max_size=32),
    st.integers(0, 20),
    st.integers(1, 200),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Change a few bytes of a well-formed hello, or cut it, or add to it."""
    wire = bytearray(draw(hellos))
    for _ in range(draw(st.integers(0, 3))):
        wire[draw(st.integers(0, len(wire) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(wire)))
    return bytes(wire[:cut] if draw(st.booleans()) else wire) + draw(st.binary(max_size=8))


@settings(max_examples=1500, deadline=None)
@example(wire=b"\x16\3\1\0\1\1\x16")
@given(wire=st.one_of(mutated(), st.binary(max_size=100)))
def test_agrees_with_the_reference_on_every_prefix(wire: bytes) -> None:
    parser = ClientHelloParser()
    outcome: Outcome = None
    for at in range(len(wire)):
        if outcome is None:
            try:
                outcome = parser.feed(wire[at : at + 1])
            except Refusal as refused:
                outcome = (refused.alert, 0)
        if at % 7 == 0 or outcome is not None:
            assert outcome == reference(wire[: at + 1])
        if outcome is not None:
            break
    assert parse(wire) == outcome


@settings(max_examples=300, deadline=None)
@given(wire=mutated(), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_any_cut_gives_the_same(wire: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    pieces = [wire[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(*pieces) == parse(wire)
