"""Accepting: in batches, calmly, and never for good."""

import array
import errno
import os
import pathlib
import resource
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from sniproxy.dataplane import listener as listeners
from sniproxy.dataplane.listener import (
    HANDSHAKE,
    LAST_CALL,
    MOST_FAILURES,
    PAUSE,
    SHARED_BATCH,
    Listener,
)
from sniproxy.dataplane.tally import LEAD, MOMENT, MOMENTS, Tally
from sniproxy.dataplane.waiting import FOR_A_DESCRIPTOR, LONGEST_RETRY
from sniproxy.log.repeats import PERIOD
from sniproxy.resolver.hosts import can_refuse_descriptors
from tests.end_to_end.harness import TIMEOUT, in_thread, wait_until
from tests.hello import hello
from tests.plane import Descriptors, Plane
from tests.processes import in_child

HELLO = hello("a.example")


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=300) as made:
        yield made


def connect(listening: socket.socket, count: int) -> list[socket.socket]:
    return [socket.create_connection(listening.getsockname(), 20) for _ in range(count)]


def close_all(clients: list[socket.socket]) -> None:
    for client in clients:
        client.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_queue_is_emptied(plane: Plane, listening: socket.socket, shared: bool) -> None:
    crowded = (lambda: None) if shared else None
    listener = Listener(listening.dup(), plane.connections, crowded)
    clients = connect(listening, 200)
    plane.until(lambda: plane.connections.totals.accepted == 200)
    # The batches grow while the queue lasts: not one look for events a connection.
    assert plane.poller.turn < 60
    close_all(clients)
    plane.until(lambda: plane.connections.totals.open == 0)
    clients = connect(listening, 1)
    plane.until(lambda: plane.connections.totals.accepted == 201)
    close_all(clients)
    listener.close()


def test_what_is_accepted_is_watched_over_and_not_delayed(
    plane: Plane, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep-alive and no delay are inherited from the listening socket."""
    listener = Listener(listening, plane.connections)
    welcomed: list[socket.socket] = []
    monkeypatch.setattr(listeners, "welcome", lambda _, client, *__: welcomed.append(client))
    clients = connect(listening, 1)
    plane.until(lambda: bool(welcomed))
    assert welcomed[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert welcomed[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not os.get_inheritable(welcomed[0].fileno())
    close_all([*clients, *welcomed])
    listener.close()


def test_a_unix_socket_has_no_such_options(plane: Plane, tmp_path: pathlib.Path) -> None:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "socket"))
    unix.listen()
    listener = Listener(unix, plane.connections)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
        plane.until(lambda: plane.connections.totals.accepted == 1)
    listener.close()


@pytest.mark.skipif(
    not can_refuse_descriptors(), reason="not applicable: this kernel refuses no descriptors"
)
def test_a_client_cannot_pass_descriptors(plane: Plane, tmp_path: pathlib.Path) -> None:
    """What is accepted inherits it, and what is still in the queue has it, too."""
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "socket"))
    unix.listen()
    listener = Listener(unix, plane.connections)
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
        for _ in range(2):
            with pytest.raises(PermissionError):
                client.sendmsg([HELLO], passed)
            plane.until(lambda: plane.connections.totals.accepted == 1)
    listener.close()


def test_somebody_else_was_quicker(plane: Plane, listening: socket.socket) -> None:
    """An event whose connection is gone does not block, though the socket came blocking, or was
    made so again by somebody who shares it."""

    def work() -> None:
        other = listening.dup()
        listener = Listener(listening, plane.connections)
        for _ in range(3):
            other.setblocking(True)
            listener.ready(0)
        assert plane.connections.totals.accepted == 0
        clients = connect(other, 3)
        # In the second turn there is one connection less than it looks for.
        while plane.connections.totals.accepted < 3:
            other.setblocking(True)
            plane.turn()
        close_all(clients)
        listener.close()

    in_child(work)


def test_closing_leaves_the_socket_to_the_others(plane: Plane, listening: socket.socket) -> None:
    listener = Listener(listening.dup(), plane.connections)
    listener.close()
    clients = connect(listening, 1)
    plane.turn(5)
    assert plane.connections.totals.accepted == 0
    accepted, _ = listening.accept()
    close_all([accepted, *clients])


def test_finishing_takes_what_is_in_the_queue(plane: Plane, listening: socket.socket) -> None:
    listener = Listener(listening.dup(), plane.connections, lambda: None)
    clients = connect(listening, 200)
    listener.finish(alone=False)
    plane.until(lambda: not listener.open)
    assert plane.connections.totals.accepted == 200
    close_all(clients)
    # Whoever comes now waits for the next copy.
    clients = connect(listening, 1)
    listening.accept()[0].close()
    close_all(clients)


def test_finishing_at_an_empty_queue_is_an_end_at_once(
    plane: Plane, listening: socket.socket
) -> None:
    listener = Listener(listening.dup(), plane.connections)
    listener.finish(alone=False)
    assert not listener.open


def test_a_queue_that_is_never_empty_is_left_to_the_next_copy(plane: Plane) -> None:
    """Or what is accepted at the end of our time would be cut off with it."""
    listening = troubled(*[errno.EMFILE] * 1000)
    others = socket.socket(fileno=os.dup(listening.fileno()))
    listener = Listener(listening, plane.connections)
    clients = connect(others, 1)
    listener.finish(alone=False)
    plane.clock.advance(LAST_CALL - PAUSE)
    plane.turn(5)
    assert listener.open
    plane.clock.advance(PAUSE)
    assert not listener.open
    others.accept()[0].close()
    close_all([*clients, others])


def test_alone_it_takes_the_time_that_it_takes(plane: Plane) -> None:
    """Descriptors become free while others end; nobody comes meanwhile."""
    listening = troubled(*[errno.EMFILE] * 30)
    address = listening.getsockname()
    listener = Listener(listening, plane.connections)
    clients = connect(listening, 3)
    listener.finish(alone=True)
    with socket.socket() as late:
        late.setblocking(False)
        late.connect_ex(address)
        for _ in range(60):
            plane.turn(5)
            plane.clock.advance(PAUSE)
        assert plane.connections.totals.accepted == 3
        assert not listener.open
    close_all(clients)


def test_alone_it_waits_for_handshakes_that_are_under_way(
    plane: Plane, listening: socket.socket
) -> None:
    listener = Listener(listening, plane.connections)
    listener.finish(alone=True)
    plane.turn(5)
    assert listener.open
    plane.clock.advance(HANDSHAKE)
    assert not listener.open


def test_alone_a_unix_socket_is_not_asked_again_and_again(
    plane: Plane, tmp_path: pathlib.Path
) -> None:
    """It has no handshakes to wait for, and is readable without end once it begins no more."""
    address = str(tmp_path / "socket")
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(address)
    unix.listen()
    listener = Listener(unix, plane.connections)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in clients:
        client.connect(address)
    before = plane.poller.turn
    listener.finish(alone=True)
    # The clock stands still.
    plane.until(lambda: not listener.open)
    assert plane.poller.turn - before <= len(clients)
    assert plane.connections.totals.accepted == len(clients)
    close_all(clients)


EPOLL_WAITS = {"232", "281", "22"}
"""Numbers of epoll_wait and epoll_pwait on x86_64, and of epoll_pwait on aarch64."""


def asleep(thread: threading.Thread) -> bool:
    """Say whether a thread waits for events, proc(5)."""
    call = pathlib.Path(f"/proc/self/task/{thread.native_id}/syscall").read_text()
    return call.split()[0] in EPOLL_WAITS


class Troubled(socket.socket):
    """A listening socket whose next accepts fail, in ways that loopback does not."""

    def __init__(self, listening: socket.socket, *errors: int) -> None:
        super().__init__(fileno=listening.detach())
        self.errors = list(errors)

    def _accept(self) -> tuple[int, object]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super()._accept()  # type: ignore[misc,no-any-return]


def troubled(*errors: int) -> Troubled:
    return Troubled(socket.create_server(("127.0.0.1", 0)), *errors)


@pytest.mark.parametrize(
    "error",
    [
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    ],
)
def test_the_trouble_of_one_client_is_passed_over(plane: Plane, error: int) -> None:
    listening = troubled(error)
    listener = Listener(listening, plane.connections)
    clients = connect(listening, 2)
    plane.until(lambda: plane.connections.totals.accepted == 2)
    assert plane.clock.timers <= 1  # the sweep of undecided hellos, no pause
    assert "accept_failed" not in plane.log
    close_all(clients)
    listener.close()


def test_trouble_with_every_client_is_our_own(plane: Plane) -> None:
    """A filter that forbids to accept takes nothing from the queue: no loop without an end."""
    listening = troubled(*[errno.EPERM] * 1000)
    listener = Listener(listening, plane.connections)
    clients = connect(listening, 1)
    plane.turn(500)
    assert len(listening.errors) == 1000 - MOST_FAILURES
    assert plane.log.count("event=accept_failed") == 1
    plane.clock.advance(PAUSE)
    plane.turn(500)
    assert len(listening.errors) == 1000 - MOST_FAILURES - 1
    listening.errors.clear()
    plane.clock.advance(PAUSE)
    plane.until(lambda: plane.connections.totals.accepted == 1)
    # The next one's trouble is its own again.
    listening.errors = [errno.EPERM]
    clients += connect(listening, 1)
    plane.until(lambda: plane.connections.totals.accepted == 2)
    close_all(clients)
    listener.close()


def test_what_the_poller_refuses_it_takes_later(plane: Plane) -> None:
    listening = troubled(errno.EMFILE)
    listener = Listener(listening, plane.connections)
    clients = connect(listening, 1)
    plane.until(lambda: not listening.errors)
    # As long as it is registered, it can't be once more.
    plane.poller.watch(listening.fileno(), listener)
    for _ in range(3):
        plane.clock.advance(PAUSE)
    # One line for each reason.
    assert plane.log.count("event=accept_failed") == 2
    assert plane.faults == []
    plane.poller.unwatch(listening.fileno())
    plane.clock.advance(PAUSE)
    plane.until(lambda: plane.connections.totals.accepted == 1)
    assert plane.clock.timers <= 3  # the sweeps of undecided hellos, of log lines, of spares
    close_all(clients)
    listener.close()


def test_what_it_cannot_take_others_are_to_look_at(plane: Plane) -> None:
    called: list[bool] = []
    listening = troubled(errno.EMFILE, errno.EMFILE)
    listener = Listener(listening, plane.connections, lambda: called.append(True))
    clients = connect(listening, 1)
    plane.turn(5)
    assert called == [True]
    # It does not look itself meanwhile, or two that are crowded would tell each other without end.
    listener.look()
    plane.turn(5)
    assert listening.errors == [errno.EMFILE]
    plane.clock.advance(PAUSE)
    plane.turn(5)
    assert called == [True, True]
    plane.clock.advance(PAUSE)
    plane.until(lambda: plane.connections.totals.accepted == 1)
    close_all(clients)
    listener.close()


def test_a_look_at_what_another_was_woken_for(plane: Plane, listening: socket.socket) -> None:
    """Of two that share the socket one is woken, and takes nothing."""
    idle = select.epoll()
    idle.register(listening, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    listener = Listener(listening.dup(), plane.connections, lambda: None)
    thread = in_thread(lambda: idle.poll(TIMEOUT))
    wait_until(lambda: asleep(thread))
    clients = connect(listening, 1)
    thread.join()
    plane.turn(5)
    assert plane.connections.totals.accepted == 0
    listener.look()
    plane.until(lambda: plane.connections.totals.accepted == 1)
    close_all(clients)
    idle.close()
    listener.close()


def test_who_has_accepted_is_woken_last(plane: Plane, listening: socket.socket) -> None:
    """And is not told of what another one is woken for, though it has registered before it."""
    listener = Listener(listening.dup(), plane.connections, lambda: None)
    other = select.epoll()
    other.register(listening, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    clients = connect(listening, 1)
    plane.until(lambda: plane.connections.totals.accepted == 1)
    thread = in_thread(lambda: other.poll(TIMEOUT))
    wait_until(lambda: asleep(thread))
    clients += connect(listening, 1)
    thread.join()
    plane.turn(5)
    assert plane.connections.totals.accepted == 1
    close_all(clients)
    other.close()
    listener.close()


def test_who_is_ahead_leaves_the_queue_for_a_moment(plane: Plane, listening: socket.socket) -> None:
    """Each time it comes back it takes one; as the other takes nothing, in the end it takes all."""
    tally = Tally(2)
    tally.join(0)
    listener = Listener(listening.dup(), plane.connections, lambda: None, tally)
    clients = connect(listening, 200)
    totals = plane.connections.totals
    taken = []
    while totals.accepted < 200:
        plane.turn(100)
        taken.append(totals.accepted)
        plane.clock.advance(MOMENT)
    assert LEAD <= taken[0] < 2 * LEAD + SHARED_BATCH
    assert taken == [*range(taken[0], taken[0] + MOMENTS), 200]
    close_all(clients)
    listener.close()


def test_who_cannot_step_back_goes_on_later(plane: Plane, listening: socket.socket) -> None:
    listener = Listener(listening.dup(), plane.connections, lambda: None)
    clients = connect(listening, 1)
    # As where the kernel has no memory to register it anew.
    plane.poller._epoll.unregister(listener._socket.fileno())
    listener.ready(select.EPOLLIN)
    assert plane.connections.totals.accepted == 1
    clients += connect(listening, 1)
    plane.turn(5)
    assert plane.connections.totals.accepted == 1
    plane.clock.advance(PAUSE)
    plane.until(lambda: plane.connections.totals.accepted == 2)
    assert plane.log.count("event=accept_failed") == 1
    close_all(clients)
    listener.close()


@pytest.mark.parametrize(
    "error",
    [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL, errno.EFAULT],
)
def test_the_trouble_of_the_system_is_waited_out(plane: Plane, error: int) -> None:
    """Accepting pauses and goes on; one line at once and a count, however long it lasts."""
    listening = troubled(*[error] * 5)
    listener = Listener(listening, plane.connections)
    clients = connect(listening, 1)
    for _ in range(5):
        plane.turn(3)
        assert plane.connections.totals.accepted == 0
        # It has left the epoll: nothing spins meanwhile.
        turn = plane.poller.turn
        plane.poller.select(0)
        assert plane.poller.turn == turn + 1
        plane.clock.advance(PAUSE)
    plane.until(lambda: plane.connections.totals.accepted == 1)
    assert plane.log.count("event=accept_failed") == 1
    plane.clock.advance(PERIOD)
    assert plane.log.count("event=accept_failed") == 2
    assert plane.log.endswith(" count=4\n")
    # Another time, another line.
    listening.errors = [error]
    clients += connect(listening, 1)
    plane.until(lambda: not listening.errors)
    assert plane.log.count("event=accept_failed") == 3
    close_all(clients)
    listener.close()


def test_free_descriptors_are_for_those_who_are_here_already(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or each would become one more client that has no backend."""
    listening = socket.create_server(("127.0.0.1", 0))
    listener = Listener(listening, plane.connections)
    backend = plane.backend("a.example")
    descriptors = Descriptors(monkeypatch, left=0)
    clients = connect(listening, 1)
    clients[0].sendall(HELLO)
    plane.until(lambda: FOR_A_DESCRIPTOR in plane.connections.lines)
    clients += connect(listening, 2)
    for _ in range(10):
        plane.turn(10)
        plane.clock.advance(PAUSE)
    assert plane.connections.totals.accepted == 1
    assert plane.log.count("event=accept_failed") == 1
    descriptors.left = 9
    plane.clock.advance(LONGEST_RETRY)
    assert backend.accept().recv(9999) == HELLO
    plane.clock.advance(2 * PAUSE)
    plane.until(lambda: plane.connections.totals.accepted == 3)
    close_all(clients)
    listener.close()


def test_closed_while_it_pauses(plane: Plane) -> None:
    listening = troubled(errno.EMFILE)
    listener = Listener(listening, plane.connections)
    clients = connect(listening, 1)
    plane.until(lambda: not listening.errors)
    listener.close()
    plane.clock.advance(1)
    plane.turn(5)
    assert plane.connections.totals.accepted == 0
    close_all(clients)


def test_with_no_descriptor_left(plane: Plane) -> None:
    """The same with a real limit: no undecided hello, so it pauses until one is free."""

    def work() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        listener = Listener(listening, plane.connections)
        backend = plane.backend("a.example")
        clients = [socket.create_connection(listening.getsockname(), 20) for _ in range(3)]
        for client in clients:
            client.sendall(HELLO)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Room for all clients and their backends, whatever numbers are in use below it.
        highest = max(map(int, os.listdir("/proc/self/fd"))) + 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        plane.turn(10)
        assert plane.connections.totals.accepted == 0
        for fd in held:
            os.close(fd)
        plane.clock.advance(PAUSE)
        plane.until(lambda: plane.connections.totals.accepted == 3)
        assert backend.accept().recv(9999) == HELLO
        listener.close()

    in_child(work)
