"""The peers: how each client asks once, and how each server is started.

A client is a function of (folder, host, port, certificate of the authority) that gives the answer's
text; a server one of (folder, key and certificates, path of the Unix socket) that gives commands to
start in the host's directory, the last of which listens on the socket. ``Missing`` says what to
install.
"""

import base64
import hashlib
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.ports import free_port

HERE = pathlib.Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "peers"
NGINX_STREAM = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")
APACHE_MODULES = pathlib.Path("/usr/lib/apache2/modules")
PATIENCE = 60
"""Seconds that a client has: Java compiles first."""

Client = Callable[[pathlib.Path, str, int, pathlib.Path], str]
Server = Callable[[pathlib.Path, pathlib.Path, pathlib.Path], list[list[str]]]


class Missing(Exception):  # noqa: N818 - why a pair is skipped
    """A program or library is not there."""


def need(program: str, package: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        raise Missing(f"{program} is missing: install {package}")
    return path


def run(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(
        command, check=False, input=text, capture_output=True, text=True, timeout=PATIENCE
    )
    return done.stdout + (f"\n{done.stderr}" if done.returncode else "")


def converse(command: Sequence[str], text: str) -> str:
    """Run a client that takes the end of its input for the end of everything: keep that open until
    the answer, which is small, has come."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(text.encode())
        client.stdin.flush()
        answer = b""
        wait = float(PATIENCE)
        while select.select([client.stdout], [], [], wait)[0]:
            chunk = os.read(client.stdout.fileno(), 65536)
            if not chunk:
                break
            answer += chunk
            wait = 1.0 if b"HTTP/1." in answer and b"\n\r\n" in answer else PATIENCE
        client.kill()
    return answer.decode(errors="replace")


def request(host: str) -> str:
    return f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"


# Clients.


def curl(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
    command = [need("curl", "curl"), "-sS", "-i", "--http1.1", "--cacert", str(ca)]
    command += ["--resolve", f"{host}:{port}:127.0.0.1", f"https://{host}:{port}/"]
    return run(command)


def libcurl(name: str, package: str, word: str) -> Client:
    """Make a client of a libcurl that says ``word`` of its TLS library."""

    def ask(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
        found = list(pathlib.Path("/usr/lib").glob(f"*/{name}"))
        if not found:
            raise Missing(f"{name} is missing: install {package}")
        command = [sys.executable, str(HERE / "curl_client.py"), str(found[0])]
        answer = run([*command, host, str(port), str(ca)])
        assert word in answer.splitlines()[0]
        return answer

    return ask


def openssl(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
    command = [need("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-quiet"]
    command += ["-servername", host, "-verify_return_error", "-verify_hostname", host]
    return run([*command, "-CAfile", str(ca), "-ign_eof"], request(host))


def gnutls(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
    command = [need("gnutls-cli", "gnutls-bin"), "--x509cafile", str(ca), "--sni-hostname", host]
    command += ["--verify-hostname", host, "-p", str(port), "127.0.0.1"]
    return converse(command, request(host))


def nss(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
    program = need("tstclnt", "libnss3-tools")
    database = folder / "nss"
    if not database.exists():
        database.mkdir()
        certutil = [need("certutil", "libnss3-tools"), "-d", f"sql:{database}"]
        run([*certutil, "-N", "--empty-password"])
        run([*certutil, "-A", "-n", "ca", "-t", "C,,", "-i", str(ca)])
    command = [program, "-h", "127.0.0.1", "-p", str(port), "-a", host, "-d", f"sql:{database}"]
    return converse([*command, "-V", "tls1.2:tls1.3"], request(host))


def compiled(source: str, package: str, *libraries: str) -> Client:
    """Make a client of a C program here."""

    def ask(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
        program = folder / source
        if not program.exists():
            command = [need("gcc", "gcc"), "-o", str(program), str(HERE / f"{source}.c")]
            done = subprocess.run(
                [*command, *libraries], check=False, capture_output=True, text=True
            )
            if done.returncode:
                raise Missing(f"what {source}.c is compiled with is missing: install {package}")
        return run([str(program), host, str(port), str(ca)])

    return ask


def java(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
    classes = folder / "java"
    if not classes.exists():
        compiler = need("javac", "default-jdk-headless")
        subprocess.run([compiler, "-d", str(classes), str(HERE / "Client.java")], check=True)
    command = [need("java", "default-jdk-headless"), "-cp", str(classes), "Client"]
    return run([*command, host, str(port), str(ca)])


def rustls(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
    program = BUILD / "debug" / "rustls-client"
    if not (folder / "rustls").exists():
        crate = HERE / "rustls-client"
        command = [need("cargo", "cargo-web rustc-web"), "build", "--locked", "--quiet"]
        command += ["--manifest-path", str(crate / "Cargo.toml"), "--target-dir", str(BUILD)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"rustls-client is missing: {done.stderr.strip()[-300:]}")
        (folder / "rustls").touch()
    return run([str(program), host, str(port), str(ca)])


def python(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
    command = [sys.executable, str(HERE / "python_client.py"), host, str(port), str(ca)]
    return run(command)


def chromium(folder: pathlib.Path, host: str, port: int, ca: pathlib.Path) -> str:
    """The headless shell takes no authority of ours, so the server's own key is named to it."""
    program = shutil.which("chromium-headless-shell") or need("chromium", "chromium")
    pem = folder / host.partition(".")[0] / "server.pem"
    certificate = x509.load_pem_x509_certificates(pem.read_bytes())[0]
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    trusted = base64.b64encode(hashlib.sha256(key).digest()).decode()
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder}/profile", "--dump-dom"]
    command += [f"--ignore-certificate-errors-spki-list={trusted}"]
    command += ["--host-resolver-rules=MAP * 127.0.0.1", f"https://{host}:{port}/"]
    return run(command)


CLIENTS: dict[str, Client] = {
    "curl (OpenSSL)": curl,
    "libcurl (GnuTLS)": libcurl("libcurl-gnutls.so.4", "libcurl3-gnutls", "GnuTLS"),
    "libcurl (NSS)": libcurl("libcurl-nss.so.4", "libcurl3-nss and nss-plugin-pem", "NSS"),
    "openssl s_client": openssl,
    "gnutls-cli": gnutls,
    "NSS (tstclnt)": nss,
    "Chromium": chromium,
    "Mbed TLS": compiled(
        "mbedtls_client", "libmbedtls-dev", "-lmbedtls", "-lmbedx509", "-lmbedcrypto"
    ),
    "wolfSSL": compiled("wolfssl_client", "libwolfssl-dev", "-lwolfssl"),
    "Java": java,
    "rustls": rustls,
    "Python ssl": python,
}


# Servers. Each answers an HTTP request with a page that says who it is and which TLS it speaks.


def nginx(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    """The others take the newest TLS that there is; this one has every client speak 1.2 once."""
    page = 'location / { return 200 "served by nginx over $ssl_protocol\\n"; }'
    certificate = f"ssl_certificate {pem}; ssl_certificate_key {pem}; ssl_protocols TLSv1.2;"
    return [nginx_with(folder, f"server {{ listen unix:{path} ssl; {certificate} {page} }}")]


def nginx_with(folder: pathlib.Path, http: str, stream: str = "") -> list[str]:
    """Configure an nginx that is no system's service. ``stream`` is a block of the module of that
    name, or nothing. It has a master, without which its TLS does not outlive a reload."""
    program = need("nginx", "nginx-light")
    if stream:
        if not NGINX_STREAM.exists():
            raise Missing("nginx has no stream module: install libnginx-mod-stream")
        stream = f"load_module {NGINX_STREAM}; {stream}"
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"""{stream}
        daemon off; user root; pid {folder}/pid; error_log {folder}/error;
        events {{}}
        http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
        fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
        {http} }}"""
    )
    return [program, "-p", str(folder), "-c", str(configuration)]


def haproxy(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    page = "served by haproxy over %[ssl_fc_protocol]"
    return [haproxy_with(folder, f"unix@{path} ssl crt {pem}", page)]


def haproxy_with(folder: pathlib.Path, bind: str, page: str) -> list[str]:
    """Configure an HAProxy that has one page."""
    program = need("haproxy", "haproxy")
    configuration = folder / "haproxy.cfg"
    configuration.write_text(
        f"""defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 5s
frontend web
    bind {bind}
    http-request return status 200 content-type text/plain lf-string "{page}"
"""
    )
    return [program, "-db", "-q", "-f", str(configuration)]


def apache(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    (folder / "index.html").write_text('served by apache over <!--#echo var="SSL_PROTOCOL" -->\n')
    lines = f"""LoadModule dir_module {APACHE_MODULES}/mod_dir.so
LoadModule include_module {APACHE_MODULES}/mod_include.so
DirectoryIndex index.html
<Directory {folder}>
Options +Includes
SetOutputFilter INCLUDES
</Directory>
SSLOptions +StdEnvVars
"""
    return apache_with(folder, pem, path, lines)


def apache_with(
    folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path, lines: str
) -> list[list[str]]:
    """Configure an Apache that is no system's service, and a forwarder: it has TCP only."""
    program = need("apache2", "apache2-bin")
    port = free_port()
    configuration = folder / "apache.conf"
    modules = "\n".join(
        f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so"
        for name in ("mpm_event", "authz_core", "ssl")
    )
    configuration.write_text(
        f"""ServerRoot {folder}
{modules}
Listen 127.0.0.1:{port}
ServerName localhost
PidFile {folder}/pid
ErrorLog {folder}/error
Mutex file:{folder}
DocumentRoot {folder}
User nobody
Group nogroup
SSLEngine on
SSLCertificateFile {pem}
SSLCertificateKeyFile {pem}
SSLSessionCache none
{lines}"""
    )
    folder.chmod(0o755)
    command = [program, "-f", str(configuration), "-DFOREGROUND"]
    return [command, forwarder(path, port)]


def openssl_server(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    # By its short name: it can't print a longer one, and gives up.
    command = [need("openssl", "openssl"), "s_server", "-unix", path.name, "-cert", str(pem)]
    return [[*command, "-key", str(pem), "-www", "-quiet"]]


def gnutls_server(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    port = free_port()
    command = [need("gnutls-serv", "gnutls-bin"), "--http", "-p", str(port)]
    command += ["--x509keyfile", str(pem), "--x509certfile", str(pem)]
    return [command, forwarder(path, port)]


def python_server(folder: pathlib.Path, pem: pathlib.Path, path: pathlib.Path) -> list[list[str]]:
    return [[sys.executable, str(HERE / "python_server.py"), str(path), str(pem)]]


def forwarder(path: pathlib.Path, port: int) -> list[str]:
    """Put a Unix socket before a server that has only TCP."""
    options = "retry=100,interval=0.1"
    return [
        need("socat", "socat"),
        f"UNIX-LISTEN:{path},fork,reuseaddr",
        f"TCP:127.0.0.1:{port},{options}",
    ]


SERVERS: dict[str, Server] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "apache": apache,
    "openssl": openssl_server,
    "gnutls": gnutls_server,
    "python": python_server,
}

MARKS = {
    "nginx": r"served by nginx over TLSv(1\.\d)",
    "haproxy": r"served by haproxy over TLSv(1\.\d)",
    "apache": r"served by apache over TLSv(1\.\d)",
    "openssl": r"(?s)s_server -unix .*Protocol +: TLSv(1\.\d)",
    "gnutls": r"(?is)www\.gnu\.org/software/gnutls.*Protocol version:</td><td>TLS(1\.\d)",
    "python": r"served by python over TLSv(1\.\d)",
}
"""What is in each server's page, with the version of TLS as the server knows it."""

TITLES = {
    "nginx": "nginx",
    "haproxy": "HAProxy",
    "apache": "Apache",
    "openssl": "openssl s_server",
    "gnutls": "gnutls-serv",
    "python": "Python ssl",
}


def versions(folder: pathlib.Path) -> dict[str, str]:
    """Ask each client and server, by title, for its version; that of the TLS library where another
    program's name says less. The clients must have run: some are compiled then."""
    number = r"\d+(?:\.\d+)+\w*"
    libcurl = [sys.executable, str(HERE / "curl_client.py")]
    nss_version = (
        "import ctypes; ask = ctypes.CDLL('libnss3.so').NSS_GetVersion;"
        "ask.restype = ctypes.c_char_p; print(ask().decode())"
    )
    ssl_version = [sys.executable, "-c", "import ssl; print(ssl.OPENSSL_VERSION)"]
    browser = shutil.which("chromium-headless-shell") or "chromium"
    crate = str(HERE / "rustls-client" / "Cargo.toml")
    commands: dict[str, tuple[list[str], str]] = {
        "curl (OpenSSL)": (["curl", "--version"], f"OpenSSL/({number})"),
        "libcurl (GnuTLS)": ([*libcurl, "libcurl-gnutls.so.4"], f"GnuTLS/({number})"),
        "libcurl (NSS)": ([*libcurl, "libcurl-nss.so.4"], f"NSS/({number})"),
        "openssl s_client": (["openssl", "version"], number),
        "gnutls-cli": (["gnutls-cli", "--version"], number),
        "NSS (tstclnt)": ([sys.executable, "-c", nss_version], number),
        "Chromium": ([browser, "--version"], number),
        "Mbed TLS": ([str(folder / "mbedtls_client")], number),
        "wolfSSL": ([str(folder / "wolfssl_client")], number),
        "Java": (["java", "-version"], number),
        "rustls": (["cargo", "pkgid", "--manifest-path", crate, "rustls"], f"@({number})"),
        "Python ssl": (ssl_version, number),
        "nginx": (["nginx", "-v"], number),
        "HAProxy": (["haproxy", "-v"], number),
        "Apache": (["apache2", "-v"], number),
        "openssl s_server": (["openssl", "version"], number),
        "gnutls-serv": (["gnutls-serv", "--version"], number),
    }
    return {title: version(*command) for title, command in commands.items()}


def version(command: list[str], pattern: str) -> str:
    try:
        program = need(command[0], "")
    except Missing:
        return "not there"
    done = subprocess.run(
        [program, *command[1:]],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    found = re.search(pattern, done.stdout) if done.returncode == 0 else None
    return found[found.re.groups] if found else "not there"
