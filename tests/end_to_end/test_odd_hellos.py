"""Odd hellos, through the proxy, to OpenSSL: what is legal is answered by a ServerHello, what is
not is refused, by the proxy where it can't be routed, else by the backend, whose alert arrives.

They have a real hello's extensions, and others, in the manner of tlsfuzzer's scripts. OpenSSL says
which name it saw: that by which it was reached.
"""

import socket
import ssl
from collections.abc import Callable

import pytest
import trustme

from tests.end_to_end.harness import Backend, Proxy, read_exactly
from tests.hello import extension, message, records, server_name

SERVER_NAME, SUPPORTED_VERSIONS, SESSION_TICKET, PADDING = 0, 43, 35, 21
SUPPORTED_GROUPS, KEY_SHARE = 10, 51
HANDSHAKE, ALERT, SERVER_HELLO = 22, 21, 2
ILLEGAL_PARAMETER, DECODE_ERROR, UNRECOGNIZED_NAME = 47, 50, 112
HOST = "odd.example"
NAME = server_name((0, HOST.encode()))


def real_extensions() -> dict[int, bytes]:
    """Have OpenSSL make a hello, and give its extensions by their types, each with its header."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    output = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), output, server_hostname=HOST)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = output.read()[5:]
    # The session's id, the cipher suites, the compression methods.
    at = 38
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at] + 2
    found = {}
    while at < len(hello):
        size = 4 + int.from_bytes(hello[at + 2 : at + 4], "big")
        found[int.from_bytes(hello[at : at + 2], "big")] = hello[at : at + size]
        at += size
    return found


REAL = real_extensions()


def rest(*left_out: int) -> bytes:
    """Give the real extensions but for the name, and for what a test says in another way."""
    return b"".join(REAL[kind] for kind in REAL if kind not in (SERVER_NAME, *left_out))


REST = rest()
# GREASE (RFC 8701), a draft's, one that nobody has thought of, and TLS 1.3.
MANY_VERSIONS = extension(SUPPORTED_VERSIONS, bytes.fromhex("08 3a3a 7f1c 0909 0304"))
PLAIN = message(NAME + REST)

LEGAL = {
    "real": records(PLAIN),
    "name_last": records(message(REST + NAME)),
    "no_session_id": records(message(NAME + REST, session=b"")),
    "one_byte_of_session_id": records(message(NAME + REST, session=b"\1")),
    "records_of_a_byte": records(PLAIN, 1),
    "records_of_three_bytes": records(PLAIN, 3),
    "the_message_header_cut": records(PLAIN[:2]) + records(PLAIN[2:]),
    "a_record_version_of_long_ago": records(PLAIN).replace(b"\x16\3\1", b"\x16\3\0", 1),
    "a_record_version_to_come": records(PLAIN).replace(b"\x16\3\1", b"\x16\3\xff", 1),
    "a_legacy_version_to_come": records(PLAIN[:4] + b"\3\x09" + PLAIN[6:]),
    "unknown_versions": records(message(NAME + rest(SUPPORTED_VERSIONS) + MANY_VERSIONS)),
    "grease": records(
        message(extension(0x0A0A, b"") + NAME + extension(0xFAFA, b"\0") + REST, ciphers=1)
    ),
    "a_ticket_of_60_kilobytes": records(
        message(extension(SESSION_TICKET, bytes(60_000)) + NAME + rest(SESSION_TICKET))
    ),
    "padding_of_60_kilobytes": records(
        message(extension(PADDING, bytes(60_000)) + NAME + rest(PADDING))
    ),
    "4000_unknown_extensions": records(
        message(b"".join(extension(0x4000 + one, b"") for one in range(4000)) + NAME + REST)
    ),
    "30000_cipher_suites": records(message(NAME + REST, ciphers=30_000)),
}

# These reach the backend, which knows them for what they are.
FOR_THE_BACKEND_TO_REFUSE = {
    "two_names": (
        records(message(server_name((0, HOST.encode()), (0, b"other.example")) + REST)),
        DECODE_ERROR,
    ),
    "an_unknown_type_of_name_first": (
        records(message(server_name((9, b"\xff\0"), (0, HOST.encode())) + REST)),
        DECODE_ERROR,
    ),
    "server_name_twice": (
        records(message(NAME + server_name((0, b"other.example")) + REST)),
        ILLEGAL_PARAMETER,
    ),
    "33_bytes_of_session_id": (
        records(message(NAME + REST, session=bytes(33))),
        DECODE_ERROR,
    ),
}

# These reach nobody: they are no hello, or have no name that could be looked up. The list of names
# with a.example alone has 12 bytes.
FOR_THE_PROXY_TO_REFUSE = {
    "an_empty_record_first": (b"\x16\3\1\0\0" + records(PLAIN), DECODE_ERROR),
    "an_empty_record_in_the_middle": (
        records(PLAIN[:50]) + b"\x16\3\1\0\0" + records(PLAIN[50:]),
        DECODE_ERROR,
    ),
    "no_list": (records(message(extension(SERVER_NAME, b"") + REST)), DECODE_ERROR),
    "a_list_that_is_too_long": (
        records(message(extension(SERVER_NAME, b"\0\x0d\0\0\x09a.example") + REST)),
        DECODE_ERROR,
    ),
    "a_list_that_is_too_short": (
        records(message(extension(SERVER_NAME, b"\0\x0b\0\0\x09a.example") + REST)),
        DECODE_ERROR,
    ),
    "a_name_that_is_too_long": (
        records(message(extension(SERVER_NAME, b"\0\x0c\0\0\x0aa.example") + REST)),
        DECODE_ERROR,
    ),
    "half_an_entry_after_the_last": (
        records(message(extension(SERVER_NAME, b"\0\x0d\1\0\x09a.example\0") + REST)),
        DECODE_ERROR,
    ),
    "an_empty_list": (records(message(server_name() + REST)), UNRECOGNIZED_NAME),
    "an_empty_name": (records(message(server_name((0, b"")) + REST)), UNRECOGNIZED_NAME),
    "no_name_but_of_an_unknown_type": (
        records(message(server_name((9, HOST.encode())) + REST)),
        UNRECOGNIZED_NAME,
    ),
    "a_nul_in_the_name": (
        records(message(server_name((0, f"{HOST}\0.other".encode())) + REST)),
        UNRECOGNIZED_NAME,
    ),
    "no_server_name": (records(message(REST)), UNRECOGNIZED_NAME),
}


class Answer:
    """OpenSSL as a server that has read a whole hello: the name that it saw, and its answer."""

    def __init__(self, context: ssl.SSLContext, stream: socket.socket) -> None:
        self.names: list[str | None] = []
        context.sni_callback = lambda _, name, __: self.names.append(name)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(incoming, outgoing, server_side=True)
        while not outgoing.pending:
            chunk = stream.recv(65536)
            assert chunk, "the hello was cut short"
            incoming.write(chunk)
            try:
                server.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                assert outgoing.pending
        self.wire = outgoing.read()


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert(HOST).configure_cert(made)
    return made


@pytest.fixture
def answered(
    proxy: Proxy, backend_of: Callable[..., Backend], context: ssl.SSLContext
) -> Callable[[bytes], Answer]:
    backend = backend_of(proxy.directory(HOST))

    def ask(wire: bytes) -> Answer:
        with proxy.connect() as client:
            client.sendall(wire)
            with backend.accept() as stream:
                answer = Answer(context, stream)
                stream.sendall(answer.wire)
                assert read_exactly(client, len(answer.wire)) == answer.wire
        return answer

    return ask


@pytest.mark.parametrize("workers", ["1"], indirect=True)
@pytest.mark.parametrize("wire", LEGAL.values(), ids=LEGAL)
def test_legal(answered: Callable[[bytes], Answer], wire: bytes) -> None:
    answer = answered(wire)
    assert (answer.wire[0], answer.wire[5]) == (HANDSHAKE, SERVER_HELLO)
    assert answer.names == [HOST]


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_a_second_hello_is_not_read(
    proxy: Proxy, backend_of: Callable[..., Backend], context: ssl.SSLContext
) -> None:
    """Asked for another key (HelloRetryRequest), a client may name whom it likes: it stays where
    its first hello has led, and OpenSSL believes the second."""
    other = "other.example"
    backend, spared = backend_of(proxy.directory(HOST)), backend_of(proxy.directory(other))
    x25519 = extension(SUPPORTED_GROUPS, bytes.fromhex("0002 001d"))
    given = rest(SUPPORTED_GROUPS, KEY_SHARE) + x25519
    share = bytes.fromhex("0024 001d 0020") + b"\x09".ljust(32, b"\0")
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    with proxy.connect() as client:
        stream = None
        for name, key in ((HOST, b"\0\0"), (other, share)):
            entry = server_name((0, name.encode()))
            wire = records(message(entry + given + extension(KEY_SHARE, key)))
            client.sendall(wire)
            stream = stream or backend.accept()
            incoming.write(read_exactly(stream, len(wire)))
            with pytest.raises(ssl.SSLWantReadError):
                server.do_handshake()
            answer = outgoing.read()
            assert (answer[0], answer[5]) == (HANDSHAKE, SERVER_HELLO)
            stream.sendall(answer)
            assert read_exactly(client, len(answer)) == answer
        assert stream is not None
        stream.close()
    assert names[0] == HOST
    assert names[-1] == other
    spared.listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        spared.accept()


@pytest.mark.parametrize("workers", ["1"], indirect=True)
@pytest.mark.parametrize(
    ("wire", "number"), FOR_THE_BACKEND_TO_REFUSE.values(), ids=FOR_THE_BACKEND_TO_REFUSE
)
def test_refused_by_the_backend(
    answered: Callable[[bytes], Answer], wire: bytes, number: int
) -> None:
    answer = answered(wire)
    assert (answer.wire[0], answer.wire[-1]) == (ALERT, number)
    # In particular, it saw no other name.
    assert answer.names == []


@pytest.mark.parametrize("workers", ["1"], indirect=True)
@pytest.mark.parametrize(
    ("wire", "number"), FOR_THE_PROXY_TO_REFUSE.values(), ids=FOR_THE_PROXY_TO_REFUSE
)
def test_refused_by_the_proxy(
    proxy: Proxy, backend_of: Callable[..., Backend], wire: bytes, number: int
) -> None:
    backends = [backend_of(proxy.directory(host)) for host in (HOST, "a.example")]
    assert proxy.ask(wire) == bytes([ALERT, 3, 3, 0, 2, 2, number])
    for backend in backends:
        backend.listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            backend.accept()
