"""One HTTP request over TLS by Python's ssl: ``python_client.py HOST PORT CA-FILE``."""

import socket
import ssl
import sys


def main(host: str, port: str, ca: str) -> None:
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection(("127.0.0.1", int(port)), 20) as stream,
        context.wrap_socket(stream, server_hostname=host, suppress_ragged_eofs=True) as client,
    ):
        client.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        for chunk in iter(lambda: client.recv(65536), b""):
            sys.stdout.buffer.write(chunk)


if __name__ == "__main__":
    main(*sys.argv[1:])
