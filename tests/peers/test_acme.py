"""Certificates by tls-alpn-01 (RFC 8737) for a server that knows nothing of it, as the
manual says to get them: by another client, which answers at ``acme-tls-socket``.

All are Debian's: the authority is Pebble, the client lego, the server nginx.
"""

import json
import os
import re
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable

import pytest
import trustme

from tests.deployment.inside.manual import block
from tests.end_to_end.harness import TIMEOUT, read_all, wait_until
from tests.peers.conftest import World
from tests.peers.peers import PATIENCE, Missing, need, nginx_with, request
from tests.ports import free_port

PAGE = "what the server has to say"


class Authority:
    """A running Pebble, which validates through the proxy and by tls-alpn-01 only.

    The world's authority vouches for its service, at ``url``; ``root`` does for what it issues.
    """

    def __init__(self, world: World) -> None:
        folder = world.folder / "pebble"
        folder.mkdir()
        pem = folder / "server.pem"
        identity = world.authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
        identity.private_key_and_cert_chain_pem.write_to_path(str(pem))
        port, management, names, names_management = (free_port() for _ in range(4))
        configuration = {
            "listenAddress": f"127.0.0.1:{port}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": str(pem),
            "privateKey": str(pem),
            "httpPort": 1,  # nothing listens there
            "tlsPort": world.port,
        }
        (folder / "pebble.json").write_text(json.dumps({"pebble": configuration}))
        # Every name is 127.0.0.1.
        resolver = [need("pebble-challtestsrv", "pebble"), "-dns01", f"127.0.0.1:{names}"]
        resolver += ["-management", f"127.0.0.1:{names_management}", "-defaultIPv6", ""]
        resolver += ["-http01", "", "-https01", "", "-tlsalpn01", ""]
        world.begin(folder, [resolver], names)
        # No rest before a validation, none that is left out, and no nonce that fails for once.
        whims = ["PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "PEBBLE_WFE_NONCEREJECT=0"]
        pebble = [need("pebble", "pebble"), "-dnsserver", f"127.0.0.1:{names}"]
        pebble += ["-config", str(folder / "pebble.json")]
        world.begin(folder, [["env", *whims, *pebble]], management)
        self.url = f"https://127.0.0.1:{port}/dir"
        self.root = folder / "root.pem"
        context = ssl.create_default_context(cafile=world.ca)
        address = f"https://127.0.0.1:{management}/roots/0"
        with urllib.request.urlopen(address, timeout=TIMEOUT, context=context) as answer:
            self.root.write_bytes(answer.read())


class Site:
    """A host of the manual's, in places of the test's own."""

    def __init__(self, world: World, authority: Authority, host: str) -> None:
        self.world = world
        self.host = host
        self.directory = world.proxy.directory(host)
        self.folder = world.folder / host
        self.folder.mkdir()
        (self.folder / "index.html").write_text(PAGE)
        self._authority = authority
        self._lego = need("lego", "lego")
        nginx = f"{need('nginx', 'nginx-light')} -c {self.folder}/nginx.conf"
        self._places = {
            "127.0.0.1:8445": f"127.0.0.1:{free_port()}",
            "/srv/sniproxy/shop.example": str(self.directory),
            "/var/lib/lego": f"{self.folder}/lego",
            "/var/www/shop": str(self.folder),
            "nginx -s": f"{nginx} -s",
            "shop.example": host,
        }

    def here(self, text: str) -> str:
        """Put this site's places into what the manual says."""
        for theirs, ours in self._places.items():
            text = text.replace(theirs, ours)
        return text

    def lego(
        self, command: str, *more: str, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Run a command of the manual's, which must succeed; call ``meanwhile`` again and again."""
        program, arguments = self.here(command).strip().split(" ", 1)
        assert program == "lego"
        words = ["exec", self._lego, "--server", self._authority.url, arguments, *more]
        with subprocess.Popen(
            ["sh", "-euc", " ".join(words)],
            env=os.environ | {"LEGO_CA_CERTIFICATES": str(self.world.ca)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                for _ in range(10 * PATIENCE):
                    meanwhile()
                    try:
                        output = process.communicate(timeout=0.1)[0]
                    except subprocess.TimeoutExpired:
                        continue
                    assert process.returncode == 0, output
                    return
            finally:
                process.kill()
        pytest.fail(f"lego has not ended after {PATIENCE} seconds")

    def ask(self) -> tuple[str, str]:
        """Be a client that trusts the authority of certificates alone: give the server's answer and
        its certificate's serial number."""
        context = ssl.create_default_context(cafile=self._authority.root)
        with (
            socket.create_connection(("127.0.0.1", self.world.port), TIMEOUT) as stream,
            context.wrap_socket(stream, server_hostname=self.host) as client,
        ):
            certificate = client.getpeercert()
            assert certificate is not None
            client.sendall(request(self.host).encode())
            return read_all(client).decode(), str(certificate["serialNumber"])


@pytest.fixture(scope="module")
def authority(world: World) -> Authority:
    try:
        return Authority(world)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["tls", "proxy_protocol"])
def site(request: pytest.FixtureRequest, world: World, authority: Authority) -> Site:
    """Have a site with a forwarder from ``acme-tls-socket``: the one for hosts without a PROXY
    header, or the one that takes it away."""
    try:
        site = Site(world, authority, f"{request.param.replace('_', '-')}.example")
        path = site.directory / "acme-tls-socket"
        if request.param == "tls":
            units = site.here(block("how-to/certificates.md", "Certificates by tls-alpn-01", 0))
            assert re.findall(r"^ListenStream=(.*)$", units, re.MULTILINE) == [str(path)]
            (command,) = re.findall(r"^ExecStart=(.*)$", units, re.MULTILINE)
            activate = [need("systemd-socket-activate", "systemd"), f"--listen={path}"]
            world.begin(site.folder, [[*activate, *command.split()]], path)
        else:
            (site.directory / "send-proxy-v1").touch()
            folder = site.folder / "forwarder"
            folder.mkdir()
            stream = site.here(block("how-to/certificates.md", "Certificates by tls-alpn-01", 1))
            world.begin(folder, [nginx_with(folder, "", stream)], path)
    except Missing as missing:
        pytest.skip(str(missing))
    return site


def test_a_certificate_is_obtained_and_renewed(site: Site) -> None:
    site.lego(block("how-to/certificates.md", "Certificates by tls-alpn-01", 2))

    server = block("how-to/certificates.md", "Certificates by http-01", 3)
    place = block("how-to/certificates.md", "Certificates by tls-alpn-01", 3)
    server, places = re.subn(r"(?: *ssl_certificate.*\n)+", place, server)
    assert places == 1
    if not (site.directory / "send-proxy-v1").exists():
        server = server.replace("ssl proxy_protocol", "ssl")
    command = nginx_with(site.folder, site.here(server))
    site.world.begin(site.folder, [command], site.directory / "tls-socket")
    page, first = site.ask()
    assert page.endswith(PAGE)

    def is_served_as_ever() -> None:
        assert site.ask()[0].endswith(PAGE)

    renew = block("how-to/certificates.md", "Certificates by tls-alpn-01", 4)
    # Pebble's certificates last for years, and lego without a terminal would sleep for minutes.
    more = "--days=10000", "--no-random-sleep"
    site.lego(renew, *more, meanwhile=is_served_as_ever)
    wait_until(lambda: site.ask()[1] != first)
