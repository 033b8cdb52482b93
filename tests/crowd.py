"""A data plane that has no descriptor left, in the test's own process: the limit is a real one."""

import contextlib
import fcntl
import gc
import os
import resource
import socket
from collections.abc import Iterator

from sniproxy.dataplane.listener import Listener
from sniproxy.dataplane.relay import End
from tests.hello import hello
from tests.plane import Plane

OURS = 1200
"""Numbers from here on are the test's."""


class Crowd:
    """A listener, those who come to it, and a table of descriptors without a free number, but for
    what the test does itself. Whoever comes sends its hello at once, unless told otherwise."""

    def __init__(self, plane: Plane, listening: socket.socket, *, announced: bool = False) -> None:
        self.plane = plane
        self.address = listening.getsockname()
        self.family = listening.family
        self.listener = Listener(listening, plane.connections, announced=announced)
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.full = self.limits[0]
        self.clients: list[socket.socket] = []
        self.fillers: list[int] = []

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Lift the limit for what the test does."""
        self._limit(max(self.limits[0], 2 * OURS))
        yield
        self._limit(self.full)

    def _limit(self, soft: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(soft, self.limits[1])))

    def fill(self) -> None:
        """Leave no number free, nor any that the collector would free."""
        gc.collect()
        used = {int(fd) for fd in os.listdir("/proc/self/fd")}
        self.full = max(fd for fd in used if fd < OURS) + 9  # some are for the test to free
        self._limit(self.full)
        with contextlib.suppress(OSError):
            while True:
                self.fillers.append(os.dup(0))

    def lose_spares(self) -> None:
        """Have the numbers that are held back be somebody else's."""
        while self.plane.connections.shares._lend():
            pass

    def free(self, count: int) -> None:
        for _ in range(count):
            os.close(self.fillers.pop())

    def connect(self, source: str, first: bytes | None = None) -> socket.socket:
        """Come from an address, and say something."""
        with self.room():
            made = socket.socket(self.family)
            client = socket.socket(fileno=fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, OURS))
            made.close()
        self.clients.append(client)
        client.settimeout(20)
        # A Unix client has a name so that it is known here; the proxy heeds none.
        unix = self.family == socket.AF_UNIX
        client.bind(f"\0{os.getpid()}.{len(self.clients)}" if unix else (source, 0))
        client.connect(self.address)
        if first != b"":
            client.sendall(hello("a.example") if first is None else first)
        return client

    def join(self, source: str, first: bytes | None = None) -> socket.socket:
        """Come, and be relayed."""
        before = self.relayed()
        client = self.connect(source, first)
        self.plane.until(lambda: self.relayed() == before + 1)
        return client

    def relayed(self) -> int:
        return len(self.ends())

    def ends(self) -> dict[object, End]:
        """Give the clients' ends by the clients' own addresses."""
        found: dict[object, End] = {}
        for one in self.plane.poller.watchers():
            if isinstance(one, End) and one.of_client:
                with contextlib.suppress(OSError):  # the client has gone
                    found[one.socket.getpeername()] = one
        return found

    def end_of(self, client: socket.socket) -> End:
        return self.ends()[client.getsockname()]

    def is_relayed(self, client: socket.socket) -> bool:
        return client.getsockname() in self.ends()

    def outcome(self, client: socket.socket) -> str:
        """Say what becomes of one who came: ``relayed``, or how it sees the end."""
        end = ""

        def decided() -> bool:
            nonlocal end
            client.setblocking(False)
            try:
                data = client.recv(99)
                end = f"alert {data[-1]}" if data else "closed"
            except BlockingIOError:
                return self.is_relayed(client)
            except ConnectionError:
                end = "reset"
            return True

        self.plane.until(decided)
        return end or "relayed"

    def log(self) -> str:
        with self.room():
            return self.plane.log

    def close(self) -> None:
        self._limit(self.limits[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        self.listener.close()
        for fd in self.fillers:
            os.close(fd)
        for client in self.clients:
            client.close()
