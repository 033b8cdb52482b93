"""What has a process sleep: a read that closes a socket which lingers, as kernels before 6.16 let
it be passed to us (a filter says of this one that it can't refuse it, as those do); and the look-up
in a directory that its owner holds."""

import array
import contextlib
import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from sniproxy.resolver.hosts import SO_PASSRIGHTS
from tests.end_to_end.conftest import tmp_path
from tests.end_to_end.harness import (
    Backend,
    Proxy,
    children,
    read_all,
    read_exactly,
    state,
)
from tests.faults.harness import HELLO, HOST, SERVED, ask, eventually
from tests.faults.harness import Backend as Serving
from tests.faults.test_hanging_lookups import Hold, Relayed, hold, host_of
from tests.faults.test_intruders import open_to_all
from tests.hello import hello
from tests.processes import forbid

__all__ = ["hold", "tmp_path"]  # a folder that nobody else walks through

HOSTILE = "evil.example"
HOSTILE_HELLO = hello(HOSTILE)
OWNER = 54001
REFUSED = bytes.fromhex("15030300020250")
"""An alert: internal_error."""

Start = Callable[..., Proxy]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")


def an_older_kernel() -> None:
    forbid("setsockopt", errno.ENOPROTOOPT, SO_PASSRIGHTS, argument=2)


@pytest.fixture
def lingering() -> Iterator[Callable[[], int]]:
    """Make sockets whose close lasts for an hour, or up to the end of the test."""
    peers = []

    def make() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            one = socket.create_connection(listening.getsockname())
            peers.append(listening.accept()[0])
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(65536))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        return one.detach()

    yield make
    for peer in peers:
        peer.close()


def pass_on(stream: socket.socket, fds: list[int]) -> None:
    """Pass descriptors in one message, and keep none: who reads it is the last to close them."""
    rights = array.array("i", fds)
    stream.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    for fd in fds:
        os.close(fd)


@contextlib.contextmanager
def stopped(proxy: Proxy) -> Iterator[None]:
    """Have nobody read meanwhile."""
    pids = children(proxy.process.pid) or [proxy.process.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: all(state(pid) == "T" for pid in pids), "it does not stop")
    yield
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def refused(proxy: Proxy) -> bool:
    with proxy.connect() as client:
        client.sendall(HOSTILE_HELLO)
        return read_all(client) == REFUSED  # or nothing, from a worker that learns of it meanwhile


@pytest.mark.parametrize("messages", [[1], [3, 3], [1] * 9], ids=str)
def test_a_read_that_sleeps(
    unharmed: Start,
    backend_of: Callable[..., Backend],
    lingering: Callable[[], int],
    messages: list[int],
) -> None:
    """It is woken, its connection is ended, and its host's owner is refused, by every worker; and
    nobody else is harmed."""
    proxy = unharmed(preexec=an_older_kernel)
    directory = proxy.directory(HOSTILE)
    os.chown(directory, OWNER, -1)
    backend = backend_of(directory)
    honest = [proxy.connect() for _ in range(10)]
    for client in honest:
        client.sendall(HELLO)
        assert read_exactly(client, len(SERVED)) == SERVED
    hostile = [proxy.connect() for _ in range(6)]
    streams = []
    for client in hostile:
        client.sendall(HOSTILE_HELLO)
        streams.append(backend.accept())
        read_exactly(streams[-1], len(HOSTILE_HELLO))
    passed = [[[lingering() for _ in range(count)] for count in messages] for _ in streams]
    with stopped(proxy):
        for stream, batches in zip(streams, passed, strict=True):
            for fds in batches:
                pass_on(stream, fds)
    ask(proxy)
    eventually(lambda: f"event=descriptors_passed host={HOSTILE}" in proxy.log, lambda: proxy.log)
    eventually(lambda: all(refused(proxy) for _ in range(20)), "the owner is served")
    for client, stream in zip(hostile, streams, strict=True):
        assert read_all(client).strip(b"x") == b""
        stream.close()
        client.close()
    for client in honest:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.close()
    ask(proxy)


def test_descriptors_whose_close_does_not_last(
    unharmed: Start, backend_of: Callable[..., Backend]
) -> None:
    """It is not the sleep that tells: many short ones would be as long. By any that comes along the
    owner's connections end, and he is refused, by every worker."""
    proxy = unharmed(preexec=an_older_kernel)
    directory = proxy.directory(HOSTILE)
    os.chown(directory, OWNER, -1)
    backend = backend_of(directory)
    with proxy.connect() as honest, proxy.connect() as client, proxy.connect() as idle:
        streams = []
        for one in (client, idle):
            one.sendall(HOSTILE_HELLO)
            streams.append(backend.accept())
            read_exactly(streams[-1], len(HOSTILE_HELLO))
        honest.sendall(HELLO)
        assert read_exactly(honest, len(SERVED)) == SERVED
        read, write = os.pipe()
        pass_on(streams[0], [write])
        assert read_all(client) == b""
        # All of the owner's end.
        assert read_all(idle) == b""
        # Nobody has the pipe's other end any more.
        assert os.read(read, 1) == b""
        os.close(read)
        eventually(
            lambda: f"event=descriptors_passed host={directory.name}" in proxy.log,
            lambda: proxy.log,
        )
        eventually(lambda: all(refused(proxy) for _ in range(20)), "the owner is served")
        honest.sendall(b"?")
        assert read_exactly(honest, 1) == b"?"
    for stream in streams:
        stream.close()


def test_where_look_ups_are_isolated(unharmed: Start, backend_of: Callable[..., Backend]) -> None:
    """There it is not the worker that connects, and who is barred is connected to by nobody: what
    he passes then would be closed with the connection, again and again."""
    proxy = unharmed(preexec=an_older_kernel, SNIPROXY_ISOLATE="1")
    names = HOSTILE, "worse.example"
    backends = []
    for name in names:
        os.chown(proxy.directory(name), OWNER, -1)
        backends.append(backend_of(proxy.directory(name)))

    def begin(name: str) -> socket.socket:
        wire = hello(name)
        client = proxy.connect()
        client.sendall(wire[:11] + os.urandom(32) + wire[43:])
        return client

    # Several, for each worker to have some.
    clients = [begin(name) for name in names * 4]
    streams = [backend.accept() for backend in backends * 4]
    for stream in streams:
        stream.recv(9999)
    read, write = os.pipe()
    pass_on(streams[0], [write])
    for client in clients:
        assert read_all(client) == b""
        client.close()
    os.close(read)

    def are_refused() -> bool:
        answers = []
        for name in names * 5:
            with begin(name) as client:
                answers.append(read_all(client))
        return answers == [REFUSED] * len(answers)

    eventually(are_refused, "the owner is served")
    listening = [backend.listening for backend in backends]
    for one in select.select(listening, [], [], 0)[0]:  # of a worker that learned of it meanwhile
        one.accept()[0].close()
    assert are_refused()
    assert not select.select(listening, [], [], 0)[0]
    for stream in streams:
        stream.close()


@pytest.fixture
def unaided(start: Start, serve: Callable[..., Serving]) -> Proxy:
    """A proxy that users can put hosts into, and that looks them up itself."""
    proxy = start(SNIPROXY_ISOLATE="0", SNIPROXY_LOG="connections")
    open_to_all(proxy.hosts, 0o1777)
    serve(proxy.directory(HOST))
    ask(proxy)
    return proxy


def waits(proxy: Proxy) -> socket.socket:
    client = proxy.connect()
    client.sendall(HOSTILE_HELLO)
    return client


@pytest.mark.parametrize("workers", ["2"], indirect=True)
@pytest.mark.parametrize("released", [True, False])
def test_a_worker_that_hangs_is_replaced(
    unaided: Proxy, backend_of: Callable[..., Backend], hold: Hold, released: bool
) -> None:
    """The others let the owner wait no more than once; and when the directory is let go of, what
    the worker serves goes on."""
    backend = backend_of(unaided.directory("relayed.example"))
    relayed = [Relayed(unaided, backend, "relayed.example") for _ in range(10)]
    before = children(unaided.process.pid)
    holder = hold(OWNER, host_of(unaided, OWNER, HOSTILE))
    held = waits(unaided)
    eventually(lambda: any(state(pid) == "D" for pid in before), "it does not hang")
    for one in relayed:  # those that it serves wait for it now
        one.asks()
    eventually(lambda: "event=worker_hangs" in unaided.log, lambda: unaided.log)
    assert f" host={unaided.directory(HOSTILE).name} at=Hosts.connect" in unaided.log
    eventually(lambda: len(children(unaided.process.pid)) == 3, "it is not replaced")
    (hanging,) = (pid for pid in before if state(pid) == "D")
    for _ in range(20):
        ask(unaided)
        assert refused(unaided)
    if released:
        holder.release()
        assert read_all(held) != b""  # an alert: nobody listens there
        eventually(lambda: state(hanging) == "S", "it does not come back")
        for one in relayed:
            one.is_answered()
            one.goes_on()
        for _ in range(20):
            ask(unaided)
    for one in relayed:
        one.close()
    held.close()
    # In the end nobody waits for one that not even SIGKILL ends.
    unaided.process.terminate()
    eventually(lambda: unaided.process.poll() is not None, "it does not end")
