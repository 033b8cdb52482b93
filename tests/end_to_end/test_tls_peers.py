"""Real TLS clients reach real TLS servers by name through the proxy."""

import base64
import hashlib
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.end_to_end.harness import TIMEOUT, Proxy, directory_name, in_thread
from tests.programs import need

NGINX_STREAM = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: pathlib.Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


Serve = Callable[..., None]


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for process in running:
        process.terminate()
        process.wait(TIMEOUT)


@pytest.fixture
def nginx(
    proxy: Proxy,
    authority: trustme.CA,
    ca_file: str,
    tmp_path: pathlib.Path,
    servers: list[subprocess.Popen[bytes]],
) -> str:
    """Serve web.example with nginx, which shows what it knows of the connection."""
    program = need("nginx", "nginx-light")
    directory = proxy.directory("web.example")
    (directory / "send-proxy-v2").touch()
    pem = tmp_path / "web.pem"
    authority.issue_cert("web.example").private_key_and_cert_chain_pem.write_to_path(str(pem))
    text = "$ssl_protocol $proxy_protocol_addr $server_protocol $ssl_session_reused"
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"""daemon off; master_process off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error;
        events {{}}
        http {{ access_log off; client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path};
        fastcgi_temp_path {tmp_path}; uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path};
        server {{ listen unix:{directory}/tls-socket ssl http2 proxy_protocol;
        ssl_certificate {pem}; ssl_certificate_key {pem}; ssl_protocols TLSv1.2 TLSv1.3;
        ssl_client_certificate {ca_file}; ssl_verify_client optional;
        ssl_session_cache shared:s:1m;
        location / {{ return 200 "nginx {text} $ssl_client_verify\\n"; }} }} }}"""
    )
    servers.append(subprocess.Popen([program, "-p", str(tmp_path), "-c", str(configuration)]))
    wait_for_socket(directory / "tls-socket", servers[-1])
    return "web.example"


def wait_for_socket(path: pathlib.Path, process: subprocess.Popen[bytes]) -> None:
    """Try until somebody listens."""
    while process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return
    pytest.fail(f"the server left with {process.returncode}")


def curl(proxy: Proxy, ca_file: str, host: str, *options: str) -> str:
    port = proxy.listening.getsockname()[1]
    command = [need("curl", "curl"), "-sS", "--cacert", ca_file, *options]
    command += ["--resolve", f"{host}:{port}:127.0.0.1", f"https://{host}:{port}/"]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=TIMEOUT
    ).stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--tls-max", "1.2"], "nginx TLSv1.2 127.0.0.1"),
        (["--tlsv1.3", "--http2"], "nginx TLSv1.3 127.0.0.1 HTTP/2.0"),
        (["--http1.1"], "HTTP/1.1"),
    ],
)
def test_curl_and_nginx(
    proxy: Proxy, nginx: str, ca_file: str, options: list[str], expected: str
) -> None:
    assert expected in curl(proxy, ca_file, nginx, *options)


def test_client_certificate(
    proxy: Proxy, nginx: str, ca_file: str, authority: trustme.CA, tmp_path: pathlib.Path
) -> None:
    pem = tmp_path / "client.pem"
    identity = authority.issue_cert("client@web.example")
    identity.private_key_and_cert_chain_pem.write_to_path(str(pem))
    assert curl(proxy, ca_file, nginx, "--cert", str(pem)).endswith("SUCCESS\n")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_resumes_a_session(
    proxy: Proxy, nginx: str, ca_file: str, tmp_path: pathlib.Path, version: str
) -> None:
    port = proxy.listening.getsockname()[1]
    session = tmp_path / "session"
    command = [need("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{port}", version]
    command += ["-servername", nginx, "-CAfile", ca_file, "-ign_eof"]
    request = f"GET / HTTP/1.1\r\nHost: {nginx}\r\nConnection: close\r\n\r\n"
    for option in ("-sess_out", "-sess_in"):
        done = subprocess.run(
            [*command, option, str(session)],
            check=False,
            input=request,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert "Verify return code: 0 (ok)" in done.stdout
    assert "Reused, TLSv1" in done.stdout


def test_gnutls_and_nginx(proxy: Proxy, nginx: str, ca_file: str) -> None:
    command = [need("gnutls-cli", "gnutls-bin"), "--x509cafile", ca_file, "--sni-hostname", nginx]
    command += [
        "--verify-hostname",
        nginx,
        "-p",
        str(proxy.listening.getsockname()[1]),
        "127.0.0.1",
    ]
    request = f"GET / HTTP/1.1\r\nHost: {nginx}\r\nConnection: close\r\n\r\n"
    done = subprocess.run(
        command, check=False, input=request, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert "Handshake was completed" in done.stdout


BROWSERS = ["chromium-headless-shell", "chromium"]


@pytest.mark.parametrize("host", ["web.example", "bücher.example"])
def test_a_browser_and_nginx(
    proxy: Proxy,
    nginx: str,
    authority: trustme.CA,
    tmp_path: pathlib.Path,
    host: str,
) -> None:
    """The whole way, as people go it: a name is typed, a page is shown. The international name is
    another one of the same backend's, by a link."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("Chromium is missing: install chromium-headless-shell")
    link = proxy.hosts / directory_name(proxy.hashed, "xn--bcher-kva.example")
    link.symlink_to(proxy.directory(nginx).name)
    certificate = x509.load_pem_x509_certificates((tmp_path / "web.pem").read_bytes())[0]
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    trusted = base64.b64encode(hashlib.sha256(key).digest()).decode()
    port = proxy.listening.getsockname()[1]
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    # It trusts this one key, and finds every name at the proxy.
    command += [f"--ignore-certificate-errors-spki-list={trusted}"]
    command += ["--host-resolver-rules=MAP * 127.0.0.1", f"https://{host}:{port}/"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    assert "nginx TLSv1.3 127.0.0.1 HTTP/2.0" in done.stdout
    name = host.encode("idna").decode()
    assert re.search(rf"host={name} end=\S+ ", log_at_the_end(proxy))
    # It sends what post-quantum keys make large.
    assert max(map(int, re.findall(r"bytes_up=(\d+)", proxy.log))) > 1500


def log_at_the_end(proxy: Proxy) -> str:
    assert proxy.stop(signal.SIGINT) == 0
    return proxy.log


@pytest.mark.parametrize("version", [1, 2])
def test_haproxy_reads_the_header(
    proxy: Proxy,
    authority: trustme.CA,
    ca_file: str,
    tmp_path: pathlib.Path,
    servers: list[subprocess.Popen[bytes]],
    version: int,
) -> None:
    program = need("haproxy", "haproxy")
    directory = proxy.directory("ha.example")
    (directory / f"send-proxy-v{version}").touch()
    pem = tmp_path / "ha.pem"
    authority.issue_cert("ha.example").private_key_and_cert_chain_pem.write_to_path(str(pem))
    answer = "haproxy %[src] %[fc_pp_authority]"
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(
        f"""defaults
    mode http
    timeout client 20s
    timeout server 20s
    timeout connect 5s
frontend web
    bind unix@{directory}/tls-socket accept-proxy ssl crt {pem}
    http-request return status 200 content-type text/plain lf-string "{answer}"
"""
    )
    servers.append(subprocess.Popen([program, "-db", "-q", "-f", str(configuration)]))
    wait_for_socket(directory / "tls-socket", servers[-1])
    # Only version 2 tells the name.
    expected = "haproxy 127.0.0.1 " + ("ha.example" if version == 2 else "")
    assert curl(proxy, ca_file, "ha.example").strip() == expected.strip()


def test_alpn_of_acme_reaches_the_backend(
    proxy: Proxy, authority: trustme.CA, ca_file: str
) -> None:
    """tls-alpn-01, RFC 8737: the backend sees "acme-tls/1" and chooses it."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("acme.example").configure_cert(server)
    server.set_alpn_protocols(["acme-tls/1"])
    path = proxy.directory("acme.example") / "tls-socket"
    client_program = (
        "import socket, ssl, sys\n"
        "context = ssl.create_default_context(cafile=sys.argv[1])\n"
        "context.set_alpn_protocols(['acme-tls/1'])\n"
        "stream = socket.create_connection(('127.0.0.1', int(sys.argv[2])), 20)\n"
        "with context.wrap_socket(stream, server_hostname='acme.example') as client:\n"
        "    print(client.selected_alpn_protocol())\n"
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(TIMEOUT)
        port = str(proxy.listening.getsockname()[1])
        client = subprocess.Popen(
            [sys.executable, "-c", client_program, ca_file, port], stdout=subprocess.PIPE
        )
        stream, _ = listening.accept()
        with server.wrap_socket(stream, server_side=True) as tls:
            assert tls.selected_alpn_protocol() == "acme-tls/1"
            assert client.communicate(timeout=TIMEOUT)[0] == b"acme-tls/1\n"


def test_a_hello_of_20_kilobytes(proxy: Proxy, authority: trustme.CA) -> None:
    """As large as post-quantum keys may make it, by a real TLS stack: more than a record holds."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("large.example").configure_cert(server)
    server.set_alpn_protocols(["the-last"])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols([f"protocol-{number:05}" for number in range(1400)] + ["the-last"])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(proxy.directory("large.example") / "tls-socket"))
        listening.listen()
        listening.settimeout(TIMEOUT)
        got: list[bytes] = []

        def serve() -> None:
            stream, _ = listening.accept()
            with server.wrap_socket(stream, server_side=True) as tls:
                got.append(tls.recv(100))
                tls.sendall(b"answer")

        thread = in_thread(serve)
        with context.wrap_socket(proxy.connect(), server_hostname="large.example") as client:
            assert client.selected_alpn_protocol() == "the-last"
            client.sendall(b"question")
            assert client.recv(100) == b"answer"
        thread.join()
    assert got == [b"question"]
    assert max(map(int, re.findall(r"bytes_up=(\d+)", log_at_the_end(proxy)))) > 20_000
