"""Parcels, with real sockets: what arrives, what is turned away, and that nothing stays open."""

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from sniproxy.dataplane.relay import FINISHED, FLOWING
from sniproxy.dataplane.state import (
    FORMAT,
    MOST,
    Arriving,
    Carried,
    Direction,
    Leaving,
    Relayed,
    State,
    encode,
)
from sniproxy.process.parcel import (
    MOST_DESCRIPTORS,
    Message,
    Parcel,
    connections_in,
    take,
)
from tests.plane import Packed
from tests.processes import in_child

IDLE = Direction(0, FLOWING, 0)
NOBODY = 65534
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


_kept: list[socket.socket] = []
"""Peers that only have to be there, until the test is over."""


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = descriptors()
    yield
    while _kept:
        _kept.pop().close()
    assert descriptors() == before


def plain(one: socket.socket) -> socket.SocketType:
    return socket.SocketType(fileno=one.detach())


def tcp_pair() -> tuple[socket.SocketType, socket.SocketType]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        outer = socket.create_connection(listening.getsockname())
        inner, _ = listening.accept()
    return plain(inner), plain(outer)


def unix_pair() -> tuple[socket.SocketType, socket.SocketType]:
    one, other = socket.socketpair()
    return plain(one), plain(other)


def relayed(up: bytes = b"", down: bytes = b"", host: str = "a.example") -> Relayed:
    directions = [Direction(1, FLOWING, len(one)) for one in (up, down)]
    return Relayed(("192.0.2.1", 2), host, 1.0, 2.0, *directions)


def everything(parcel: socket.socket, now: float = 1000.0) -> list[Message]:
    messages = []
    while (message := take(parcel, now)) is not None:
        messages.append(message)
    return messages


def close(messages: Sequence[Message]) -> None:
    for message in messages:
        for carried in message.connections:
            for one in carried.sockets:
                one.close()


def test_sockets_states_and_bytes_arrive() -> None:
    client, outer = tcp_pair()
    backend, inner = unix_pair()
    arriving, dialling = tcp_pair()
    leaving, left = tcp_pair()
    packer = Packed()
    states: list[State] = [relayed(b"up", b"down"), Arriving(("192.0.2.3", 4), 5.0, 3), Leaving(7)]
    packer.put(
        [
            Carried(states[0], [client, backend], b"updown"),
            Carried(states[1], [arriving], b"abc"),
            Carried(states[2], [leaving], b""),
        ]
    )
    packer.close()
    (parcel,) = packer.parcels
    assert parcel.count == 3
    assert connections_in(parcel.name) == 3
    for one in (client, backend, arriving, leaving):
        one.close()
    (message,) = everything(parcel.socket)
    assert (message.lost, message.problem) == (0, "")
    assert [one.state for one in message.connections] == states
    assert [one.unsent for one in message.connections] == [b"updown", b"abc", b""]
    outer.send(b"from the client")
    inner.send(b"from the backend")
    both = message.connections[0].sockets
    assert [one.recv(100) for one in both] == [b"from the client", b"from the backend"]
    for carried in message.connections:
        for one in carried.sockets:
            assert not os.get_inheritable(one.fileno())
            assert not os.get_blocking(one.fileno())
    close([message])
    parcel.socket.close()
    assert outer.recv(1) == b""
    assert left.recv(1) == b""
    for one in (outer, inner, dialling, left):
        one.close()


def test_the_sender_keeps_what_it_has_put() -> None:
    client, outer = tcp_pair()
    packer = Packed()
    packer.put([Carried(Leaving(None), [client], b"")])
    packer.close()
    packer.parcels[0].socket.close()
    outer.send(b"still")
    assert client.recv(10) == b"still"
    client.close()
    outer.close()


def test_many_come_in_several_parcels_and_in_order() -> None:
    client, outer = tcp_pair()
    backend, inner = unix_pair()
    packer = Packed()
    count = 0
    while len(packer.parcels) < 3:
        host = f"{count}.{'a' * 240}"[:253]
        packer.put([Carried(relayed(b"x", b"y", host), [client, backend], b"xy")] * MOST)
        count += 1
    packer.close()
    # What Renewal asks the service manager to have room for.
    assert packer.parcels[0].count >= 1500
    hosts = []
    for parcel in packer.parcels:
        messages = everything(parcel.socket)
        held = sum(len(message.connections) for message in messages)
        assert held == parcel.count
        for message in messages:
            assert not message.lost
            assert all(one.unsent == b"xy" for one in message.connections)
            hosts.append(message.connections[0].state.host)  # type: ignore[union-attr]
        close(messages)
        parcel.socket.close()
    assert hosts == [f"{at}.{'a' * 240}"[:253] for at in range(count)]
    for one in (client, outer, backend, inner):
        one.close()


def test_nothing_packed_is_no_parcel() -> None:
    packer = Packed()
    packer.close()
    assert packer.parcels == []


def test_a_parcel_that_nothing_went_into_is_none() -> None:
    client, outer = tcp_pair()
    client.close()
    packer = Packed()
    with pytest.raises(OSError, match="descriptor"):
        packer.put([Carried(Leaving(None), [client], b"")])
    packer.close()
    assert packer.parcels == []
    outer.close()


def test_an_open_parcel_is_read_as_far_as_it_is_written() -> None:
    client, outer = tcp_pair()
    packer = Packed()
    packer.put([Carried(Leaving(None), [client], b"")])
    assert packer._begun is not None
    receiver = packer._begun[1].socket.dup()
    messages = everything(receiver)
    assert len(messages) == 1
    close(messages)
    packer.close()
    for one in (receiver, packer.parcels[0].socket, client, outer):
        one.close()


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_a_socket_without_a_sender_holds_nothing(kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as alone:
        assert take(alone, 1.0) is None


# What a process that was broken into might send.


def send(message: bytes, numbers: Sequence[int]) -> Message:
    """Send a message as it stands, and take it."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender, receiver:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))]
        sender.sendmsg([message], rights if numbers else [])
        sender.close()
        taken = take(receiver, 1000.0)
        assert taken is not None
        assert take(receiver, 1000.0) is None
    return taken


def memory(data: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def a_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def listening_tcp() -> int:
    return socket.create_server(("127.0.0.1", 0)).detach()


def datagram() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


def packets() -> int:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()
    return one.detach()


def netlink() -> int:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach()


def a_file() -> int:
    return os.open("/dev/null", os.O_RDWR)


def a_folder() -> int:
    return os.open("/", os.O_PATH)


def tcp() -> int:
    inner, outer = tcp_pair()
    outer.close()
    return inner.detach()


def unix() -> int:
    one, other = unix_pair()
    other.close()
    return one.detach()


WRONG = [a_pipe, listening_tcp, datagram, packets, netlink, a_file, a_folder, lambda: memory(b"")]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("place", ["client", "backend", "alone"])
def test_a_wrong_kind_of_descriptor_costs_its_connection(
    wrong: Callable[[], int], place: str
) -> None:
    good, outer = tcp_pair()
    if place == "alone":
        state: State = Leaving(None)
        numbers = [wrong()]
    else:
        state = relayed()
        numbers = [wrong(), unix()] if place == "client" else [tcp(), wrong()]
    message = send(encode([state, Leaving(3)]), [*numbers, good.fileno()])
    assert message.lost == 1
    assert message.problem
    assert [one.state for one in message.connections] == [Leaving(3)]
    close([message])
    for number in numbers:
        os.close(number)
    good.close()
    outer.close()


def test_a_backend_is_a_unix_socket() -> None:
    numbers = [tcp(), tcp()]
    message = send(encode([relayed()]), numbers)
    assert (message.connections, message.lost) == ([], 1)
    assert "Unix" in message.problem
    for number in numbers:
        os.close(number)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: memory(b"12345", 0), "may still change"),
        (lambda: memory(b"12345", SEALS & ~fcntl.F_SEAL_WRITE), "may still change"),
        (lambda: memory(b"12345", SEALS & ~fcntl.F_SEAL_SHRINK), "may still change"),
        (lambda: memory(b"12345", SEALS & ~fcntl.F_SEAL_GROW), "may still change"),
        (lambda: memory(b"1234"), "another size"),
        (lambda: memory(b"123456"), "another size"),
        (a_pipe, "none"),
        (tcp, "none"),
        (a_file, "none"),
        (a_folder, "none"),
    ],
)
def test_a_wrong_memory_file_costs_those_with_unsent_bytes(
    make: Callable[[], int], problem: str
) -> None:
    numbers = [tcp(), tcp(), make()]
    message = send(encode([Arriving("", 1.0, 5), Leaving(None)]), numbers)
    assert message.lost == 1
    assert problem in message.problem
    assert [one.state for one in message.connections] == [Leaving(None)]
    close([message])
    for number in numbers:
        os.close(number)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 253])
def test_a_wrong_number_of_descriptors_costs_the_message(count: int) -> None:
    numbers = [tcp() for _ in range(count)]
    message = send(encode([relayed()]), numbers)
    assert message.connections == []
    assert message.lost == max(1, count // 2)
    for number in numbers:
        os.close(number)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0",
        struct.pack("!HH", FORMAT + 1, 1),
        encode([Leaving(None)]) + b"\0",
        encode([Leaving(None)])[:-1],
        bytes(range(256)) * 256,
        bytes(100_000),
    ],
)
def test_a_message_that_is_none_costs_itself(text: bytes) -> None:
    number = tcp()
    message = send(text, [number])
    assert (message.connections, message.lost) == ([], 1)
    os.close(number)


def test_the_next_message_is_not_lost_with_a_bad_one() -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender, receiver:
        sender.send(b"nothing of ours")
        number = tcp()
        socket.send_fds(sender, [encode([Leaving(None)])], [number])
        os.close(number)
        sender.close()
        first, second = everything(receiver)
    assert (first.connections, first.lost) == ([], 1)
    assert len(second.connections) == 1
    close([second])


def test_a_socket_that_lingers_does_not_hold_us_up() -> None:
    """Not in its close, after a last byte that its peer never takes, nor in a splice to it."""
    number = tcp_lingering()
    begin = time.monotonic()
    message = send(encode([relayed()]), [number, a := tcp()])
    assert message.lost == 1
    os.close(a)
    socket.SocketType(fileno=number).close()
    assert time.monotonic() - begin < 30


def tcp_lingering() -> int:
    """Make a socket whose close would take a minute."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        outer = socket.create_connection(listening.getsockname())
        inner, _ = listening.accept()
    inner.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while inner.send(bytes(1 << 20)):
            pass
    inner.setblocking(True)
    inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    _kept.append(outer)
    return inner.detach()


def test_blocking_and_lingering_are_taken_off_what_is_adopted() -> None:
    client, backend = tcp_lingering(), unix()
    os.set_blocking(backend, True)
    message = send(encode([relayed()]), [client, backend])
    os.close(client)
    os.close(backend)
    (carried,) = message.connections
    for one in carried.sockets:
        assert not os.get_blocking(one.fileno())
    begin = time.monotonic()
    close([message])
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("free", [0, 1, 2, 100, MOST_DESCRIPTORS - 2])
def test_descriptors_that_do_not_fit_cost_the_message(free: int) -> None:
    def work() -> None:
        client, outer = tcp_pair()
        backend, _inner = unix_pair()
        packer = Packed()
        packer.put([Carried(relayed(b"x"), [client, backend], b"x")] * MOST)
        packer.put([Carried(Leaving(None), [client], b"")])
        packer.close()
        client.close()
        parcel = packer.parcels[0].socket
        with parcel.dup() as probe:
            lowest = probe.fileno()
        before = set(os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
        message = take(parcel, 1000.0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert message is not None
        assert message.connections == []
        assert message.lost >= 1
        assert "fit" in message.problem
        assert set(os.listdir("/proc/self/fd")) == before
        # The next one fits.
        (second,) = everything(parcel)
        assert len(second.connections) == 1
        close([second])
        assert outer.recv(1) == b""

    in_child(work)


def test_too_many_under_way_are_still_ours() -> None:
    """ETOOMANYREFS, unix(7): as a user without rights, and with a lower limit meanwhile."""

    def work() -> None:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
        client, outer = tcp_pair()
        backend, _ = unix_pair()
        packer = Packed()
        one = Carried(relayed(), [client, backend], b"")
        packer.put([one] * MOST)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        put = 1
        problem = 0
        while put < 10 and not problem:
            try:
                packer.put([one] * MOST)
                put += 1
            except OSError as error:
                problem = error.errno or 0
        assert problem == errno.ETOOMANYREFS
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        packer.close()
        assert sum(parcel.count for parcel in packer.parcels) == put * MOST
        # Ours still work, and what was put before can be taken.
        outer.send(b"x")
        assert client.recv(1) == b"x"
        for parcel in packer.parcels:
            assert sum(len(m.connections) for m in everything(parcel.socket)) == parcel.count

    in_child(work)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sniproxy-parcel.0", 0),
        ("sniproxy-parcel.1234567", 1234567),
        ("sniproxy-parcel.12345678", None),
        ("sniproxy-parcel.", None),
        ("sniproxy-parcel", None),
        ("sniproxy-parcel.-1", None),
        ("sniproxy-parcel.1 ", None),
        ("sniproxy-parcel.1\n", None),
        ("sniproxy-parcel.\u0661", None),
        ("sniproxy-canary", None),
        ("", None),
    ],
)
def test_names(name: str, count: int | None) -> None:
    assert connections_in(name) == count
    if count is not None:
        with socket.socket() as any_one:
            assert Parcel(any_one, count).name == name


def test_half_closed_directions_travel() -> None:
    client, outer = tcp_pair()
    backend, inner = unix_pair()
    state = Relayed("", "", 0.0, 0.0, Direction(5, FINISHED, 0), IDLE)
    packer = Packed()
    packer.put([Carried(state, [client, backend], b"")])
    packer.close()
    (message,) = everything(packer.parcels[0].socket)
    assert message.connections[0].state == state
    close([message])
    packer.parcels[0].socket.close()
    for one in (client, outer, backend, inner):
        one.close()
