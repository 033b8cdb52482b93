"""Ports for programs that bind their own."""

import contextlib
import pathlib
import random
import socket

RANGE = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody has, and that no client is given before somebody listens
    on it: it is below those that the kernel deals out."""
    first = int(RANGE.read_text().split()[0])
    while True:
        port = random.randrange(first // 2, first)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
