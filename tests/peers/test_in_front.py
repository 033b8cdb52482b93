"""Balancers in front of the proxy: what they send in their PROXY headers arrives at the backend,
and their checks go unnoticed.

HAProxy, nginx and another copy of the proxy are real. Headers of cloud balancers are written from
their documentation, which each names.
"""

import dataclasses
import pathlib
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import pytest
import trustme

from tests.end_to_end.harness import TIMEOUT, Backend, Proxy, read_exactly, wait_until
from tests.hello import hello
from tests.peers.conftest import wait_for_listener
from tests.peers.peers import Missing, haproxy_with, need, nginx_with
from tests.ports import free_port

HOST = "blog.example"
HELLO = hello(HOST)
CLIENT = "127.0.0.9"
"""The client's address, which is nobody else's here."""

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PROXY = 0x21
ALPN, AUTHORITY, UNIQUE_ID, SSL = 0x01, 0x02, 0x05, 0x20
SSL_VERSION, SSL_CN, SSL_CIPHER = 0x21, 0x22, 0x23

CHECKS = 20
"""Checks that tell that more would change nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What a header of version 2 tells: the client's address, the one that it connected to, and
    TLVs by type."""

    source: tuple[str, int]
    destination: tuple[str, int]
    tlvs: dict[int, bytes]


def read_header(stream: socket.socket) -> Told:
    """Read a header of version 2, as section 2.2 of the protocol has it."""
    assert read_exactly(stream, 12) == SIGNATURE
    command, family, size = struct.unpack("!BBH", read_exactly(stream, 4))
    assert command == PROXY
    block = read_exactly(stream, size)
    kind, width = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}[family]
    addresses = [socket.inet_ntop(kind, block[at : at + width]) for at in (0, width)]
    ports = struct.unpack_from("!HH", block, 2 * width)
    source, destination = zip(addresses, ports, strict=True)
    return Told(source, destination, tlvs(block[2 * width + 4 :]))


def tlvs(block: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while block:
        kind, size = struct.unpack_from("!BH", block)
        assert kind not in found
        assert len(block) >= 3 + size
        found[kind], block = block[3 : 3 + size], block[3 + size :]
    return found


class Front:
    """A proxy that expects a header, and programs in front of it."""

    def __init__(self, command: list[str], hashed: bool, listening: socket.socket) -> None:
        # A short name: an address of a Unix socket has 107 bytes.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sniproxy-"))
        (self.folder / "hosts").mkdir()
        environment = {"SNIPROXY_ACCEPT_PROXY": "1", "SNIPROXY_LOG": "connections"}
        self.proxy = Proxy(command, self.folder / "hosts", listening, environment)
        self.proxy.hashed = hashed
        self.directory = self.proxy.directory(HOST)
        (self.directory / "send-proxy-v2").touch()
        self._running: list[subprocess.Popen[bytes]] = []
        wait_until(lambda: "event=start " in self.proxy.log)

    @property
    def address(self) -> str:
        """Where the proxy is, as others write it."""
        host, port = self.proxy.listening.getsockname()
        return f"{host}:{port}"

    def begin(self, command: list[str], where: pathlib.Path | int) -> None:
        """Start a program that listens on a Unix socket or a port of TCP; it runs until the end."""
        log = self.folder / "log"
        with log.open("ab") as stream:
            self._running.append(subprocess.Popen(command, stdout=stream, stderr=stream))
        wait_for_listener(where, self._running[-1], log)

    def totals(self) -> dict[str, int]:
        """Ask the proxy what it has seen."""
        before = self.proxy.log.count("event=totals ")
        self.proxy.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: self.proxy.log.count("event=totals ") > before)
        (line,) = re.findall(r"event=totals (.*)", self.proxy.log)[before:]
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)\b", line)}

    def close(self) -> None:
        for process in self._running:
            process.terminate()
            process.wait(TIMEOUT)
        self.proxy.listening.close()
        # Two signals: at once.
        self.proxy.stop(signal.SIGTERM, signal.SIGTERM)
        log = self.proxy.log
        shutil.rmtree(self.folder)
        assert "unexpected_error" not in log


Start = Callable[..., Front]


@pytest.fixture
def start(command: list[str], hashed: bool) -> Iterator[Start]:
    """Start proxies on a socket, or a port of 127.0.0.1."""
    made: list[Front] = []

    def begin(listening: socket.socket | None = None) -> Front:
        if listening is None:
            listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        made.append(Front(command, hashed, listening))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture
def front(start: Start) -> Front:
    return start()


@pytest.fixture
def backend(front: Front) -> Iterator[Backend]:
    made = Backend(front.directory)
    yield made
    made.close()


def haproxy(front: Front, server: str, bind: str = "", more: str = "") -> int:
    """Put an HAProxy in front, and give its port."""
    try:
        program = need("haproxy", "haproxy")
    except Missing as missing:
        pytest.skip(str(missing))
    port = free_port()
    configuration = front.folder / "haproxy.cfg"
    configuration.write_text(
        f"""global
    stats socket {front.folder}/admin
defaults
    mode tcp
    timeout client 60s
    timeout server 60s
    timeout connect 5s
listen tls
    bind 127.0.0.1:{port} {bind}
    bind [::1]:{port}
    {more}
    server one {front.address} {server}
"""
    )
    # Asked there, it takes nobody for a client.
    front.begin([program, "-db", "-q", "-f", str(configuration)], front.folder / "admin")
    return port


def nginx(front: Front) -> int:
    """Put an nginx in front, and give its port."""
    port = free_port()
    listen = f"listen 127.0.0.1:{port}; listen [::1]:{port};"
    server = f"server {{ {listen} proxy_pass {front.address}; proxy_protocol on; }}"
    try:
        command = nginx_with(front.folder, "", f"stream {{ {server} }}")
    except Missing as missing:
        pytest.skip(str(missing))
    front.begin(command, port)
    return port


def connect(port: int, family: int) -> socket.socket:
    """Be a client of a balancer's, by an address that is no other's where there are several."""
    if family == 6:
        return socket.create_connection(("::1", port), TIMEOUT)
    return socket.create_connection(("127.0.0.1", port), TIMEOUT, (CLIENT, 0))


def ends(client: socket.socket) -> tuple[tuple[str, int], tuple[str, int]]:
    ours, theirs = client.getsockname()[:2], client.getpeername()[:2]
    return (ours[0], ours[1]), (theirs[0], theirs[1])


def relayed(client: socket.socket, stream: socket.socket) -> None:
    """See that bytes go both ways behind the header."""
    assert read_exactly(stream, len(HELLO)) == HELLO
    stream.sendall(b"served")
    assert read_exactly(client, 6) == b"served"


BALANCERS: dict[str, Callable[[Front], int]] = {
    "haproxy, send-proxy": lambda front: haproxy(front, "send-proxy"),
    "haproxy, send-proxy-v2": lambda front: haproxy(front, "send-proxy-v2"),
    "nginx": nginx,
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("balancer", list(BALANCERS))
def test_a_balancer_says_who_the_client_is(
    front: Front, backend: Backend, balancer: str, family: int
) -> None:
    """To backends that ask for either version, and in the log."""
    port = BALANCERS[balancer](front)
    with connect(port, family) as client:
        client.sendall(HELLO)
        stream = backend.accept()
        source, destination = ends(client)
        assert read_header(stream) == Told(source, destination, {AUTHORITY: HOST.encode()})
        relayed(client, stream)
        stream.close()
    shown = f"[{source[0]}]" if family == 6 else source[0]
    wait_until(lambda: f"client={shown}:{source[1]} " in front.proxy.log)
    (front.directory / "send-proxy-v2").rename(front.directory / "send-proxy-v1")
    with connect(port, family) as client:
        client.sendall(HELLO)
        stream = backend.accept()
        source, destination = ends(client)
        line = f"PROXY TCP{family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n"
        assert read_exactly(stream, len(line)) == line.encode()
        relayed(client, stream)


def test_what_haproxy_tells_of_a_client_s_certificate(front: Front, backend: Backend) -> None:
    """It has ended one TLS and begins another: who the client is, is only in the header."""
    authority = trustme.CA()
    server, person = front.folder / "server.pem", front.folder / "client.pem"
    ca = front.folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert("outer.example").private_key_and_cert_chain_pem.write_to_path(str(server))
    identity = authority.issue_cert("alice@example.org", common_name="alice")
    identity.private_key_and_cert_chain_pem.write_to_path(str(person))
    options = "ssl,cert-cn,ssl-cipher,unique-id,crc32c,authority"
    port = haproxy(
        front,
        f"send-proxy-v2 proxy-v2-options {options} ssl verify none sni str({HOST})",
        f"ssl crt {server} ca-file {ca} verify required alpn http/1.1",
        "unique-id-format from-%ci-%cp",
    )
    trust = ssl.create_default_context(cafile=str(ca))
    trust.load_cert_chain(person)
    trust.set_alpn_protocols(["http/1.1"])
    with (
        connect(port, 4) as stream,
        trust.wrap_socket(stream, server_hostname="outer.example") as client,
    ):
        (address, source_port), _ = ends(client)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        told = read_header(backend.accept())
        agreed = client.version(), client.cipher()
    assert told.source == (address, source_port)
    given = dict(told.tlvs)
    # A struct of its own: what the client has done, whether its certificate is good, and more TLVs.
    done, verified = struct.unpack_from("!BI", given.pop(SSL))
    assert (done, verified) == (0x01 | 0x02 | 0x04, 0)
    parts = tlvs(told.tlvs[SSL][5:])
    assert agreed == (parts[SSL_VERSION].decode(), (parts[SSL_CIPHER].decode(), *agreed[1][1:]))
    assert parts[SSL_CN] == b"alice"
    # Our own name of the host, and no checksum, which would be another header's.
    assert given == {
        ALPN: b"http/1.1",
        AUTHORITY: HOST.encode(),
        UNIQUE_ID: f"from-{address}-{source_port}".encode(),
    }


@pytest.mark.parametrize(
    "check",
    [
        "send-proxy",
        "send-proxy-v2",
        "check-send-proxy",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        "no-check-send-proxy send-proxy-v2",
    ],
)
def test_checks_are_no_clients(front: Front, check: str) -> None:
    """With a header that announces nobody, or connected and closed: nothing is told of them."""
    haproxy(front, f"{check} check inter 10ms rise 1 fall 1")
    wait_until(lambda: front.totals()["accepted"] >= CHECKS)
    assert status(front) == "UP"
    assert front.totals()["refused"] == 0
    said = re.findall(r"event=(\w+)", front.proxy.log)
    assert set(said) == {"start", "totals"}, front.proxy.log


def status(front: Front) -> str:
    """Ask HAProxy whether its server is up."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(TIMEOUT)
        stream.connect(str(front.folder / "admin"))
        stream.sendall(b"show stat tls 4 -1\n")
        with stream.makefile() as lines:
            titles, row = (line.strip("# \n").split(",") for line in lines if "," in line)
    return dict(zip(titles, row, strict=True))["status"]


def test_a_check_may_ask_a_backend(front: Front) -> None:
    """By TLS with a name, behind a header that announces nobody: that is a connection."""
    pem = front.folder / "server.pem"
    trustme.CA().issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(pem))
    path = front.directory / "tls-socket"
    bind = f"unix@{path} ssl crt {pem} accept-proxy"
    (front.folder / "backend").mkdir()
    try:
        front.begin(haproxy_with(front.folder / "backend", bind, "a page"), path)
    except Missing as missing:
        pytest.skip(str(missing))
    name = f"check-ssl check-sni {HOST} verify none"
    haproxy(front, f"send-proxy-v2 check {name} inter 10ms rise 1 fall 1")
    wait_until(lambda: front.totals()["bytes_down"] > 0)
    wait_until(lambda: status(front) == "UP")
    path.unlink()
    wait_until(lambda: status(front) == "DOWN")


CLOUDS = {
    # An endpoint's ID in ASCII behind the subtype PP2_SUBTYPE_AWS_VPCE_ID; a checksum, and padding:
    # https://docs.aws.amazon.com/elasticloadbalancing/latest/network/edit-target-group-attributes.html
    "Amazon's Network Load Balancer": (
        "0d0a0d0a000d0a515549540a 21 11 0054"
        "cb00714d c633641f c8f2 01bb"
        "03 0004 4ad1cff5"
        "ea 0017 01 767063652d3031323334353637383961626364656630"
        "04 0024" + 36 * "00",
        0xEA,
        b"\1vpce-0123456789abcdef0",
    ),
    # pscConnectionId, eight bytes in network order:
    # https://cloud.google.com/vpc/docs/configure-private-service-connect-producer
    "Google's Private Service Connect": (
        "0d0a0d0a000d0a515549540a 21 11 0017cb00714d c633641f c8f2 01bbe0 0008 ffffffffc0a86402",
        0xE0,
        (0xFFFFFFFFC0A86402).to_bytes(8, "big"),
    ),
    # LINKID, four bytes in Intel's order, behind PP2_SUBTYPE_AZURE_PRIVATEENDPOINT_LINKID:
    # https://learn.microsoft.com/azure/private-link/private-link-service-overview
    "Azure's Private Link": (
        "0d0a0d0a000d0a515549540a 21 11 0014cb00714d c633641f c8f2 01bbee 0005 01 78563412",
        0xEE,
        b"\1" + (0x12345678).to_bytes(4, "little"),
    ),
}


@pytest.mark.parametrize("cloud", list(CLOUDS))
def test_what_a_cloud_s_balancer_adds_arrives(front: Front, backend: Backend, cloud: str) -> None:
    wire, kind, value = CLOUDS[cloud]
    with front.proxy.connect() as client:
        client.sendall(bytes.fromhex(wire) + HELLO)
        stream = backend.accept()
        assert read_header(stream) == Told(
            ("203.0.113.77", 51442),
            ("198.51.100.31", 443),
            {AUTHORITY: HOST.encode(), kind: value},
        )
        relayed(client, stream)


def test_two_in_a_row(front: Front, start: Start) -> None:
    """A host of the first is the second one, on a Unix socket; that gets all that the first got."""
    path = front.directory / "tls-socket"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(100)
    second = start(listening)
    backend = Backend(second.directory)
    wire, kind, value = CLOUDS["Amazon's Network Load Balancer"]
    with front.proxy.connect() as client:
        client.sendall(bytes.fromhex(wire) + HELLO)
        stream = backend.accept()
        assert read_header(stream) == Told(
            ("203.0.113.77", 51442),
            ("198.51.100.31", 443),
            {AUTHORITY: HOST.encode(), kind: value},
        )
        relayed(client, stream)
    backend.close()
    for one in (front, second):
        wait_until(lambda one=one: "client=203.0.113.77:51442 " in one.proxy.log)
