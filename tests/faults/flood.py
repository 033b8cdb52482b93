"""One client that opens as many connections as it can, and keeps each that it gets.

``address`` is that of the proxy: a port of 127.0.0.1, or the path of a Unix socket. ``--slow``
sends half a hello on each; ``--prefix`` announces it by a PROXY header, each time by another
address of that prefix of 64 bits. Prints now and then how many attempts it has made, at last
"done". Holds what it has until its standard input is closed, and prints how many of its connections
were served, and how many of those are still open.
"""

import argparse
import errno
import os
import select
import socket
import sys

from sniproxy.parser.proxy_header import version_1
from tests.hello import hello

AT_A_TIME = 100
"""Connections under way."""

REPORT = 500

_BIND_ADDRESS_NO_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT, ip(7): any port will do, and many at once."""


class Flood:
    """What one client holds."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.wire = hello(options.host)
        self.epoll = select.epoll()
        self.open: dict[int, socket.socket] = {}
        self.under_way: set[int] = set()
        self.served: set[int] = set()
        self.attempts = self.ever_served = 0

    def begin(self) -> bool:
        """Connect once more; say whether that worked."""
        address = self.options.address
        if address.isdigit():
            one = socket.socket()
            one.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            one.bind((self.options.source, 0))
            where: tuple[str, int] | str = ("127.0.0.1", int(address))
        else:
            one, where = socket.socket(socket.AF_UNIX), address
        one.setblocking(False)
        if one.connect_ex(where) not in (0, errno.EINPROGRESS):
            one.close()  # a Unix queue is full
            return False
        self.attempts += 1
        self.open[one.fileno()] = one
        self.under_way.add(one.fileno())
        self.epoll.register(one.fileno(), select.EPOLLOUT | select.EPOLLRDHUP)
        return True

    def first(self) -> bytes:
        """Give what is sent first. No two hellos have the same random: that might be a loop."""
        wire = self.wire[:11] + os.urandom(32) + self.wire[43:]
        if self.options.slow:
            wire = wire[:60]
        if self.options.prefix:
            source = f"{self.options.prefix}:{os.urandom(2).hex()}:0:0:{os.urandom(2).hex()}"
            wire = version_1((source, 1), ("2001:db8::1", 443)) + wire
        return wire

    def turn(self, timeout: float) -> None:
        for fd, mask in self.epoll.poll(timeout):
            one = self.open[fd]
            try:
                if fd in self.under_way and mask & select.EPOLLOUT:
                    one.send(self.first())
                    self.epoll.modify(fd, select.EPOLLIN | select.EPOLLRDHUP)
                    self.under_way.discard(fd)
                elif one.recv(100).startswith(b"served"):
                    self.served.add(fd)
                    self.ever_served += 1
                else:
                    self.end(fd)
            except OSError:
                self.end(fd)

    def end(self, fd: int) -> None:
        self.under_way.discard(fd)
        self.served.discard(fd)
        self.open.pop(fd).close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("count", type=int)
    parser.add_argument("--source", default="127.0.0.2")
    parser.add_argument("--host", default="a.example")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--prefix")
    options = parser.parse_args()
    flood = Flood(options)
    said = 0
    while flood.attempts < options.count:
        while len(flood.under_way) < AT_A_TIME and flood.attempts < options.count:
            if not flood.begin():
                break
        flood.turn(0.1)
        if flood.attempts >= said + REPORT:
            said = flood.attempts
            print(said, flush=True)
    while flood.under_way:
        flood.turn(0.1)
    print("done", flush=True)
    over = select.poll()
    over.register(sys.stdin, select.POLLIN | select.POLLHUP)
    while not over.poll(0):
        flood.turn(0.05)
    print(flood.ever_served, len(flood.served), flush=True)


if __name__ == "__main__":
    main()
