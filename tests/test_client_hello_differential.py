"""Thousands of hellos, well-formed and mutated, against the second implementation and OpenSSL.

Not at random: each run sees the same. Every byte of every hello is changed in several ways, cut
off, doubled and left out, in several cuts into records. Among the hellos are those that real
clients of this machine send. That every reason for a refusal comes up shows that it is enough.
"""

import random
import re
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest

from sniproxy.parser import client_hello
from sniproxy.parser.alert import Alert, Refusal
from sniproxy.parser.client_hello import ClientHelloParser, usual_host_name
from tests.hello import extension, hello, message, records, server_name
from tests.test_client_hello import FIXTURE, Outcome, real_hello, reference

NAME = "a.example"

MADE = [
    FIXTURE,
    hello(NAME),
    hello(NAME, padding=40),
    hello(NAME, record=20),
    hello(NAME, record=1),
    records(message(server_name((0, b"Z.Example")), session=b"", ciphers=1)),
    records(
        message(extension(10, b"\0\2\0\x1d") + server_name((0, b"b.c")) + extension(43, b"\2"))
    ),
    records(message(server_name((9, b"other"), (0, b"first"), (0, b"second")))),
    records(message(extension(0xFF01, b"\0"), ciphers=0)),
    records(message(None)),
    records(message(b"")),
    records(message(extension(0, b""))),
]

BY_OTHER_TESTS = {"hello_too_long"}
"""Reasons that no wire of this size has."""


def mutations(wire: bytes, chance: random.Random) -> Iterator[bytes]:
    yield wire
    for at in range(len(wire)):
        for byte in {
            0,
            255,
            wire[at] ^ 1,
            wire[at] ^ 0x80,
            (wire[at] + 1) % 256,
            wire[at] - 1 & 255,
        }:
            yield wire[:at] + bytes([byte]) + wire[at + 1 :]
        yield wire[:at] + wire[at + 1 :]
        yield wire[:at] + wire[at : at + 1] + wire[at:]
        yield wire[:at] + chance.randbytes(chance.randrange(1, 5)) + wire[at:]
    for _ in range(len(wire)):
        changed = bytearray(wire)
        for _ in range(chance.randrange(2, 6)):
            changed[chance.randrange(len(wire))] = chance.randrange(256)
        yield bytes(changed)


def outcome_and_size(wire: bytes) -> tuple[Outcome, str, int]:
    """Feed byte by byte; give the outcome, the reason of a refusal, and how many bytes it took."""
    parser = ClientHelloParser()
    for at in range(len(wire)):
        try:
            host = parser.feed(wire[at : at + 1])
        except Refusal as refused:
            return (refused.alert, 0), refused.reason, at + 1
        if host is not None:
            return host, "", at + 1
    return None, "", len(wire)


def outcome(*pieces: bytes) -> Outcome:
    parser = ClientHelloParser()
    for piece in pieces:
        try:
            host = parser.feed(piece)
        except Refusal as refused:
            return (refused.alert, 0)
        if host is not None:
            return host
    return None


def compare(wire: bytes, chance: random.Random) -> str:
    """Check the outcome, that it comes with the very byte that decides it, and any other cut."""
    found, reason, size = outcome_and_size(wire)
    assert reference(wire[:size]) == found, wire.hex()
    if found is not None:
        assert reference(wire[: size - 1]) is None, wire.hex()
    # What comes later changes nothing.
    assert reference(wire) == found, wire.hex()
    assert outcome(wire) == found, wire.hex()
    agrees_with_the_usual_way(wire, found)
    cut = chance.randrange(len(wire) + 1)
    assert outcome(wire[:cut], wire[cut:]) == found, wire.hex()
    return reason


STALE = bytearray(b"\xff\0\0\x10\0\x0d" * 50_000)
"""What may lie in the buffer behind what has arrived."""


def agrees_with_the_usual_way(wire: bytes, found: Outcome) -> None:
    """The straight way through a whole hello says the same, or nothing; whatever is behind it."""
    said = set()
    for stale in (bytearray(1 << 18), STALE):
        buffer = bytearray(stale)
        buffer[: len(wire)] = wire
        said.add(usual_host_name(buffer, len(wire)))
    (host,) = said
    if host is not None:
        assert host == found, wire.hex()
        parser = ClientHelloParser()
        assert parser.feed(wire) == host
        assert parser.validates() is False, wire.hex()


def all_reasons() -> set[str]:
    """Read from the parser's source what it may say."""
    with open(client_hello.__file__) as file:
        source = file.read()
    reasons = set(re.findall(r'Refusal\(Alert\.\w+, "(\w+)"', source))
    reasons |= {f"{what}_does_not_fit" for what in re.findall(r'_misfit\("(\w+)"\)', source)}
    return reasons | set(re.findall(r'"((?:end_of|no)_\w+)"', source))


def test_thousands_of_mutated_hellos() -> None:
    chance = random.Random(20260801)
    seen: Counter[str] = Counter()
    for made in MADE:
        for wire in mutations(made, chance):
            seen[compare(wire, chance)] += 1
    assert seen.total() > 10_000
    # Every reason, and none of them by one lucky byte only; well-formed ones as well.
    missing = all_reasons() - BY_OTHER_TESTS - set(seen)
    assert not missing
    assert seen[""] > 1000
    assert set(seen) - {""} <= all_reasons()


# Real clients.


def first_flight(command: list[str]) -> bytes:
    """Have a client connect, take the whole of its first message, and hang up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        port = str(listening.getsockname()[1])
        words = [word.replace("PORT", port) for word in command]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as client:
            stream, _ = listening.accept()
            with stream:
                stream.settimeout(60)
                wire = b""
                while not complete(wire):
                    chunk = stream.recv(65536)
                    assert chunk, wire
                    wire += chunk
            client.kill()
            client.communicate()
    return wire


def complete(wire: bytes) -> bool:
    body = handshake(wire)
    return len(body) >= 4 and len(body) >= 4 + int.from_bytes(body[1:4], "big")


def handshake(wire: bytes) -> bytes:
    """Take the handshake message out of its records."""
    body, at = b"", 0
    while at < len(wire):
        size = int.from_bytes(wire[at + 3 : at + 5], "big")
        body += wire[at + 5 : at + 5 + size]
        at += 5 + size
    return body


CURL = [
    "curl",
    "-sk",
    "--resolve",
    "Www.Example.com:PORT:127.0.0.1",
    "https://Www.Example.com:PORT/",
]
OPENSSL = ["openssl", "s_client", "-connect", "127.0.0.1:PORT", "-servername", "Www.Example.com"]
GNUTLS = [
    "gnutls-cli",
    "--insecure",
    "--sni-hostname",
    "Www.Example.com",
    "-p",
    "PORT",
    "127.0.0.1",
]
BROWSER = [
    "chromium-headless-shell",
    "--no-sandbox",
    "--host-resolver-rules=MAP * 127.0.0.1",
    "--dump-dom",
    "https://Www.Example.com:PORT/",
]
CLIENTS = {
    "curl": [*CURL, "--http2"],
    "curl-tls12": [*CURL, "--tls-max", "1.2"],
    "openssl": OPENSSL,
    "openssl-alpn": [*OPENSSL, "-alpn", "h2,http/1.1", "-status", "-ct", "-noct"],
    "openssl-tls12": [*OPENSSL, "-tls1_2", "-no_ticket"],
    "openssl-fragments": [*OPENSSL, "-max_send_frag", "512", "-split_send_frag", "512"],
    "gnutls": GNUTLS,
    "gnutls-tls12": [*GNUTLS, "--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.2"],
    "chromium": BROWSER,
}


@pytest.fixture(params=CLIENTS, scope="module")
def real(request: pytest.FixtureRequest) -> bytes:
    command: list[str] = CLIENTS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is missing")
    return first_flight(command)


def test_a_real_hello_in_any_cut(real: bytes) -> None:
    expected = "www.example.com"
    decided = outcome_and_size(real)[2]
    assert outcome(real) == expected
    for at in range(len(real)):
        assert outcome(real[:at]) == (expected if at >= decided else None)
        assert outcome(real[:at], real[at:]) == expected
    for size in (1, 2, 3, 7, 100):
        again = records(handshake(real), size)
        assert outcome(again) == outcome_and_size(again)[0] == reference(again) == expected


def test_a_real_hello_mutated(real: bytes) -> None:
    chance = random.Random(len(real))
    wires = list(mutations(real, chance))
    for wire in chance.sample(wires, 1500):
        compare(wire, chance)


def names_that_openssl_sees(context: ssl.SSLContext, wire: bytes) -> list[str | None]:
    """Give the one name, or None for a hello without; nothing where it accepts no hello."""
    names: list[str | None] = []

    def stop(_: object, name: str | None, __: object) -> int:
        names.append(name)
        return ssl.ALERT_DESCRIPTION_USER_CANCELLED

    context.sni_callback = stop
    incoming = ssl.MemoryBIO()
    incoming.write(wire)
    with pytest.raises((ssl.SSLWantReadError, ssl.SSLError)):
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    return names


# Python complains of a name that is not ASCII, which is none to us, instead of giving it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_backend_sees_no_other_name() -> None:
    """Where a backend chooses its certificate and its site by the name, it must choose by the one
    that it was reached by. OpenSSL accepts fewer hellos, and in them it sees ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    seen: Counter[str] = Counter()
    for wire in mutations(real_hello("Www.Example.com"), random.Random(7)):
        for theirs in names_that_openssl_sees(context, wire):
            ours = outcome(wire)
            if isinstance(ours, str):
                assert theirs is not None, wire.hex()
                assert ours == theirs.lower(), wire.hex()
                seen["the same"] += 1
            else:
                assert ours == (Alert.UNRECOGNIZED_NAME, 0), wire.hex()
                seen["none of ours"] += 1
    assert seen["the same"] > 1000
    assert seen["none of ours"] > 10


def test_a_long_list_of_protocols_makes_a_real_hello_long() -> None:
    """20 kB by OpenSSL itself, in the records that it makes of it."""
    context = ssl.create_default_context()
    context.set_alpn_protocols([f"protocol-{number:05}" for number in range(1400)])
    output = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), output, server_hostname="Www.Example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    wire = output.read()
    assert len(wire) > 20_000
    assert outcome(wire) == outcome_and_size(wire)[0] == reference(wire) == "www.example.com"
