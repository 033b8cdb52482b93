"""The proxy at work: real TLS backends behind it, asked by name by a real client.

Makes a hosts directory, certificates and backends, starts sniproxy on a loopback port, asks, shows
what came back from where, and stays up for whoever wants to try.
"""

import argparse
import contextlib
import dataclasses
import http.server
import os
import pathlib
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import trustme

PORT = 8443
TIMEOUT = 10.0
"""Seconds that a question may take."""

BIN = pathlib.Path(sys.executable).parent


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One question and what came of it."""

    name: str
    what: str
    expected: str
    answer: str

    @property
    def well(self) -> bool:
        return self.expected in self.answer


class Page(http.server.BaseHTTPRequestHandler):
    """Answers who it is, and what a PROXY header said of the client."""

    server: "Backend"

    def do_GET(self) -> None:
        text = f"I am {self.server.title}{getattr(self.connection, 'announced', '')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        """Say nothing: the table says it all."""


class AnnouncedSocket(ssl.SSLSocket):
    """A TLS connection that knows what the PROXY header before it said."""

    announced = ""


class Backend(http.server.ThreadingHTTPServer):
    """A web server with TLS on a Unix socket."""

    address_family = socket.AF_UNIX
    daemon_threads = True

    def __init__(
        self, path: pathlib.Path, title: str, context: ssl.SSLContext, *, header: bool = False
    ) -> None:
        self.title = title
        self._context = context
        self._header = header
        super().__init__(str(path), Page)  # type: ignore[arg-type]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def server_bind(self) -> None:
        """Bind without looking up a host name."""
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "unix", 0

    def get_request(self) -> tuple[socket.socket, str]:
        stream, _ = self.socket.accept()
        return stream, "unix"

    def finish_request(self, request: socket.socket, address: str) -> None:  # type: ignore[override]
        request.settimeout(TIMEOUT)
        with contextlib.suppress(OSError):
            announced = read_header(request) if self._header else ""
            with self._context.wrap_socket(request, server_side=True) as stream:
                stream.announced = announced  # type: ignore[attr-defined]
                self.RequestHandlerClass(stream, address, self)  # type: ignore[arg-type]

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away."""


def read_header(stream: socket.socket) -> str:
    """Read a PROXY v2 header; say what it tells: the client, and the name that it asked for."""
    start = stream.recv(16, socket.MSG_WAITALL)
    (size,) = struct.unpack("!H", start[14:])
    block = stream.recv(size, socket.MSG_WAITALL)
    client = f"{socket.inet_ntop(socket.AF_INET, block[:4])}:{int.from_bytes(block[8:10], 'big')}"
    kind, length = struct.unpack("!BH", block[12:15])
    authority = block[15 : 15 + length].decode() if kind == 2 else "?"
    return f", told by PROXY v2 of client {client} asking for {authority}"


def directory_of(name: str) -> str:
    """Ask sniproxy-hostname."""
    command = [str(BIN / "sniproxy-hostname"), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def ask(name: str, port: int, ca: pathlib.Path) -> str:
    """Ask for https://NAME/ through the proxy, with curl if there is one; give the answer."""
    ascii_name = name.encode("idna").decode()
    curl = shutil.which("curl")
    if curl:
        command = curl_line(ascii_name, port, ca)
        done = subprocess.run(
            [curl, "--silent", "--show-error", *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        return (done.stdout or done.stderr).strip()
    context = ssl.create_default_context(cafile=str(ca))
    try:
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT) as stream,
            context.wrap_socket(stream, server_hostname=ascii_name) as client,
        ):
            client.sendall(f"GET / HTTP/1.0\r\nHost: {ascii_name}\r\n\r\n".encode())
            return b"".join(iter(lambda: client.recv(4096), b"")).decode().splitlines()[-1]
    except OSError as error:
        return str(error)


def curl_line(name: str, port: int, ca: pathlib.Path) -> list[str]:
    """Give the command line that asks for a name on the loopback port."""
    return [
        "curl",
        "--cacert",
        str(ca),
        "--resolve",
        f"{name}:{port}:127.0.0.1",
        f"https://{name}:{port}/",
    ]


class Demonstration:
    """The hosts directory with its backends and the proxy before it."""

    def __init__(self, folder: pathlib.Path, listening: socket.socket) -> None:
        self.hosts = folder / "hosts"
        self.hosts.mkdir()
        self.port: int = listening.getsockname()[1]
        self.ca = folder / "ca.pem"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.ca))
        self._backends: list[Backend] = []
        self.proxy = subprocess.Popen(
            [str(BIN / "sniproxy")],
            stdin=listening,
            cwd=self.hosts,
            env={**os.environ, "SNIPROXY_LOG": "error"},
        )

    def serve(self, name: str, title: str, *, header: bool = False) -> pathlib.Path:
        """Start a backend for a name; give its directory."""
        directory = self.hosts / directory_of(name)
        directory.mkdir()
        if header:
            (directory / "send-proxy-v2").touch()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        names = [name, *(["new.example"] if name == "old.example" else [])]
        self._authority.issue_cert(*names).configure_cert(context)
        self._backends.append(Backend(directory / "tls-socket", title, context, header=header))
        return directory

    def rows(self) -> Iterator[Row]:
        """Set up one thing after the other, with the proxy running, and ask for each."""
        self.serve("blog.example", "the blog")
        yield self._row("blog.example", "a plain backend", "I am the blog")
        self.serve("bücher.example", "the bookshop")
        yield self._row("bücher.example", "an international name", "I am the bookshop")
        self.serve("shop.example", "the shop", header=True)
        yield self._row("shop.example", "wants send-proxy-v2", "asking for shop.example")
        old = self.serve("old.example", "the old server")
        link = self.hosts / directory_of("new.example")
        link.symlink_to(old.name)
        yield self._row("new.example", "a symbolic link to old.example", "I am the old server")
        yield self._row("nobody.example", "no such directory: refused", "unrecognized name")

    def _row(self, name: str, what: str, expected: str) -> Row:
        answer = ask(name, self.port, self.ca)
        # OpenSSL's words for the alert, as curl and Python print them.
        return Row(name, what, expected, answer.replace("_", " ").replace("NAME", "name"))

    def stop(self) -> None:
        self.proxy.terminate()
        try:
            self.proxy.wait(TIMEOUT + 5)
        finally:
            for backend in self._backends:
                backend.shutdown()
                backend.server_close()


def listening_socket(port: int) -> socket.socket:
    """Listen on a port of the loopback address, or on a free one where that is taken."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=100)
    except OSError:
        return socket.create_server(("127.0.0.1", 0), backlog=100)


def main() -> int:
    parser = argparse.ArgumentParser(description="Show sniproxy at work on a loopback port.")
    parser.add_argument("--once", action="store_true", help="leave after the table")
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="sniproxy-demo-") as folder,
        listening_socket(options.port) as listening,
    ):
        demonstration = Demonstration(pathlib.Path(folder), listening)
        listening.close()
        try:
            print(f"sniproxy listens on 127.0.0.1:{demonstration.port}\n")
            failed = [row.name for row in demonstration.rows() if not show(row)]
            if failed:
                print(f"\nwrong answers from: {', '.join(failed)}", file=sys.stderr)
                return 1
            print("\nEach was set up while the proxy was running; it was never restarted.")
            if not options.once:
                stay(demonstration)
        except KeyboardInterrupt:
            print("\nstopping")
        finally:
            demonstration.stop()
    return 0


def show(row: Row) -> bool:
    """Print a row; say whether the answer was the expected one."""
    print(
        f"{'ok   ' if row.well else 'WRONG'} {row.name:16} {row.what:32} {row.answer}", flush=True
    )
    return row.well


def stay(demonstration: Demonstration) -> None:
    """Wait for Ctrl-C, having said what to try."""
    port, ca = demonstration.port, demonstration.ca
    print("\nTry it:")
    for name in ("blog.example", "xn--bcher-kva.example", "shop.example", "nobody.example"):
        print("  " + " ".join(curl_line(name, port, ca)))
    print(f"\nThe hosts directory is {demonstration.hosts}: make a directory NAME in it, let a")
    print("TLS server listen on NAME/tls-socket, and it is served. Ctrl-C ends all of it.")
    demonstration.proxy.wait()


if __name__ == "__main__":
    sys.exit(main())
