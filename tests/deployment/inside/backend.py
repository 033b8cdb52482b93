"""A backend: TLS on a Unix socket, run as the user whose host it is.

It answers each line of a client with its title, until the client ends.
"""

import os
import socket
import ssl
import sys
import threading


def server_context() -> ssl.SSLContext:
    """Make the context of a server with the names of the tests."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(os.path.join(os.path.dirname(__file__), "server.pem"))
    return context


def serve(stream: socket.socket, title: bytes, context: ssl.SSLContext) -> None:
    """Answer one client. One that goes away is no fault."""
    try:
        with (
            context.wrap_socket(stream, server_side=True) as client,
            client.makefile("rwb") as file,
        ):
            for _ in file:
                file.write(title + b"\n")
                file.flush()
    except OSError:
        stream.close()


def main() -> None:
    path, title, umask = sys.argv[1:]
    context = server_context()
    os.umask(int(umask, 8))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(1000)
    print("listening", flush=True)
    while True:
        stream, _ = listening.accept()
        threading.Thread(target=serve, args=(stream, title.encode(), context), daemon=True).start()


if __name__ == "__main__":
    main()
