"""The client's address as servers behind the proxy see it: each daemon of Debian's that takes a
PROXY header, told by one of its own settings, and asked what address it has for its client.

Each has two hosts of one server, one with ``send-proxy-v1`` and one with ``send-proxy-v2``.
"""

import dataclasses
import pathlib
import shutil
import socket
import ssl
from collections.abc import Callable

import pytest
import trustme

from tests.end_to_end.harness import TIMEOUT, read_all, wait_until
from tests.peers.conftest import World
from tests.peers.peers import (
    APACHE_MODULES,
    Missing,
    Server,
    apache_with,
    forwarder,
    haproxy_with,
    need,
    nginx_with,
    request,
    run,
)
from tests.ports import free_port

CLIENT = "127.0.0.9"
"""The client's address, which is nobody else's here."""

HEADERS = ("send-proxy-v1", "send-proxy-v2")
NO_AUTHORITY = ""


def nginx(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    page = 'location / { return 200 "seen $remote_addr:$remote_port\\n"; }'
    real = "set_real_ip_from unix:; real_ip_header proxy_protocol;"
    certificate = f"ssl_certificate {pem}; ssl_certificate_key {pem};"
    listen = f"listen unix:{path} ssl proxy_protocol;"
    return [nginx_with(folder, f"server {{ {listen} {real} {certificate} {page} }}")]


def haproxy(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    page = "seen %[src]:%[src_port] as <%[fc_pp_authority]>"
    return [haproxy_with(folder, f"unix@{path} ssl crt {pem} accept-proxy", page)]


def apache(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    lines = f"""LoadModule remoteip_module {APACHE_MODULES}/mod_remoteip.so
RemoteIPProxyProtocol On
CustomLog {folder}/log "seen %a:%{{remote}}p"
"""
    return apache_with(folder, pem, path, lines)


def dovecot(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    """Configure one for IMAP. Only its listeners on TCP take a header."""
    program = need("dovecot", "dovecot-imapd")
    if not pathlib.Path("/usr/lib/dovecot/imap-login").exists():
        raise Missing("imap-login is missing: install dovecot-imapd")
    port = free_port()
    configuration = folder / "dovecot.conf"
    configuration.write_text(
        f"""base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = imap
listen = 127.0.0.1
ssl = required
ssl_cert = <{pem}
ssl_key = <{pem}
haproxy_trusted_networks = 127.0.0.1/32
login_log_format_elements = rip=%r rport=%b %c
passdb {{
  driver = static
  args = password=none
}}
service imap-login {{
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    port = {port}
    ssl = yes
    haproxy = yes
  }}
}}
"""
    )
    return [[program, "-F", "-c", str(configuration)], forwarder(path, port)]


def postfix(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    """Configure one for submission over TLS; it takes no mail."""
    program = need("postfix", "postfix")
    master = "/usr/lib/postfix/sbin/master"
    port = free_port()
    for name in ("etc", "queue", "data"):
        (folder / name).mkdir()
    shutil.chown(folder / "data", "postfix")
    (folder / "etc" / "main.cf").write_text(
        f"""compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = /dev/stdout
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = postfix.example
mydestination =
alias_maps =
alias_database =
smtpd_tls_chain_files = {pem}
smtpd_client_port_logging = yes
"""
    )
    options = "-o smtpd_tls_wrappermode=yes -o smtpd_upstream_proxy_protocol=haproxy"
    (folder / "etc" / "master.cf").write_text(
        f"""127.0.0.1:{port} inet n - n - - smtpd {options}
tlsmgr unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""
    )
    run([program, "-c", f"{folder}/etc", "check"])  # makes what is missing in the queue's folder
    # What `postfix start-fg` runs, but our own child, which can be ended.
    return [[master, "-c", f"{folder}/etc", "-s"], forwarder(path, port)]


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How a server is started, what a client says to it, and what then is in its answer or its log
    that tells whom it takes the client for."""

    start: Server
    words: Callable[[str], str]
    tells: str


def words(text: str) -> Callable[[str], str]:
    return lambda host: text


KINDS = {
    "nginx": Kind(nginx, request, "seen {address}:{port}\n"),
    "haproxy": Kind(haproxy, request, "seen {address}:{port} as <{authority}>"),
    "apache": Kind(apache, request, "seen {address}:{port}\n"),
    "dovecot": Kind(dovecot, words("a LOGOUT\r\n"), "rip={address}, rport={port}, TLS"),
    "postfix": Kind(postfix, words("QUIT\r\n"), "]: connect from unknown[{address}]:{port}\n"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def server(request: pytest.FixtureRequest, world: World) -> str:
    """Start a server with two hosts, and give its name."""
    name: str = request.param
    folder = world.folder / f"seen-{name}"
    folder.mkdir()
    hosts = [host(name, header) for header in HEADERS]
    identity = world.authority.issue_cert(*hosts, key_type=trustme.KeyType.RSA)
    pem = folder / "server.pem"
    identity.private_key_and_cert_chain_pem.write_to_path(str(pem))
    first, second = (world.proxy.directory(host) for host in hosts)
    for directory, header in zip((first, second), HEADERS, strict=True):
        (directory / header).touch()
    (second / "tls-socket").symlink_to(f"../{first.name}/tls-socket")
    try:
        world.begin(
            folder, KINDS[name].start(folder, pem, first / "tls-socket"), first / "tls-socket"
        )
    except Missing as missing:
        pytest.skip(str(missing))
    return name


def host(server: str, header: str) -> str:
    return f"{server}-{header}.example"


@pytest.mark.parametrize("header", HEADERS)
def test_a_server_sees_the_client(world: World, server: str, header: str) -> None:
    name = host(server, header)
    kind = KINDS[server]
    context = ssl.create_default_context(cafile=world.ca)
    with (
        socket.create_connection(("127.0.0.1", world.port), TIMEOUT, (CLIENT, 0)) as stream,
        context.wrap_socket(stream, server_hostname=name) as client,
    ):
        address, port = client.getsockname()
        client.sendall(kind.words(name).encode())
        answer = read_all(client).decode()
    assert address == CLIENT
    authority = name if header == "send-proxy-v2" else NO_AUTHORITY
    told = kind.tells.format(address=address, port=port, authority=authority)
    log = world.folder / f"seen-{server}" / "log"
    wait_until(lambda: told in answer or told in log.read_text())
