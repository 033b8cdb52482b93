"""What comes round: hellos that came before, on connections that nobody answers."""

import os
import resource
import socket
import sys

import pytest

from sniproxy.dataplane import loops
from sniproxy.dataplane.connections import PATIENCE
from sniproxy.dataplane.listener import Listener
from sniproxy.dataplane.loops import MOST, REMEMBERED, SHARE, Loops
from sniproxy.dataplane.waiting import LONGEST_RETRY
from tests.end_to_end.harness import Backend
from tests.hello import hello
from tests.plane import Plane, alert
from tests.processes import in_child

HELLO = hello("a.example")
FEW = 5


@pytest.fixture
def plane(plane: Plane) -> Plane:
    plane.connections.loops.most = FEW
    return plane


def hello_of(number: int) -> memoryview:
    return memoryview(HELLO[:11] + number.to_bytes(32, "big") + HELLO[43:])


def fill(plane: Plane, backend: Backend) -> list[socket.socket]:
    """Have as many connections with the same hello as may go round; the first is not known yet."""
    clients = [plane.client(HELLO) for _ in range(FEW + 1)]
    for _ in clients:
        assert backend.accept().recv(9999) == HELLO
    return clients


def test_a_hello_that_came_before() -> None:
    known = Loops(str)
    assert not known.again(hello_of(0))
    assert known.again(bytearray(hello_of(0)))
    # Within so many others it is still known, and is known anew from there.
    for number in range(1, REMEMBERED):
        assert not known.again(hello_of(number))
    assert known.again(hello_of(0))
    for number in range(REMEMBERED, 2 * REMEMBERED - 1):
        assert not known.again(hello_of(number))
    assert known.again(hello_of(0))
    assert not known.again(hello_of(1))


def test_what_is_remembered_is_bounded(plane: Plane) -> None:
    known = Loops(str)
    for number in range(10 * REMEMBERED):
        known.again(hello_of(number))
    sets = (known._recent, known._before)
    size = sum(map(sys.getsizeof, [*sets, *sets[0], *sets[1]]))
    assert size < 300_000
    # Connections that are over are forgotten, and answered ones are, too.
    backend = plane.backend("a.example")
    for _ in range(300):
        client = plane.client(HELLO)
        plane.turn()
        backend.accept().close()
        plane.until(lambda: plane.connections.totals.open == 0 or not plane.turn())
        client.close()
        backend.accepted.clear()
    plane.until(lambda: plane.connections.totals.open == 0)
    assert sum(map(len, plane.connections.loops._ends.values())) < 2 * loops._FEW


def test_as_many_as_may_go_round() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def work() -> None:
        for limit in (256, 1024, 3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            assert Loops(str).most == max(1, min(MOST, limit // SHARE))

    in_child(work)


def test_one_more_is_refused_in_the_end(plane: Plane) -> None:
    backend = plane.backend("a.example")
    fill(plane, backend)
    late = plane.client(HELLO)
    plane.clock.advance(PATIENCE - 1)
    plane.turn(3)
    assert plane.connections.totals.refused == {}
    plane.clock.advance(1 + LONGEST_RETRY)
    assert plane.read(late, 7) == alert(80)
    assert plane.connections.totals.refused == {"loop": 1}
    assert plane.log.count(f"event=loop host=a.example connections={FEW}") == 1


def test_when_one_is_refused_so_are_all_who_wait(plane: Plane) -> None:
    """Or each of them would go round as soon as the first has ended. It is said once."""
    backend = plane.backend("a.example")
    clients = fill(plane, backend)
    late = [plane.client(HELLO)]
    plane.clock.advance(PATIENCE / 2)
    late.append(plane.client(HELLO))
    plane.clock.advance(PATIENCE / 2 + LONGEST_RETRY)
    late.append(plane.client(HELLO))
    assert [plane.read(each, 7) for each in late] == [alert(80)] * 3
    assert plane.log.count("event=loop") == 1
    for each in (*clients, *backend.accepted):
        each.close()
    plane.turn(10)
    plane.client(HELLO)
    assert backend.accept().recv(9999) == HELLO


def test_whom_an_answer_lets_in(plane: Plane) -> None:
    """Equal hellos alone are no loop: a backend that answers has as many as come."""
    backend = plane.backend("a.example")
    fill(plane, backend)
    late = [plane.client(HELLO) for _ in range(3)]
    for stream in list(backend.accepted):
        stream.sendall(b"!")
    plane.turn(5)
    plane.clock.advance(LONGEST_RETRY)
    for _ in late:
        assert backend.accept().recv(9999) == HELLO
    assert plane.connections.totals.refused == {}


def test_whom_an_end_lets_in(plane: Plane) -> None:
    backend = plane.backend("a.example")
    clients = fill(plane, backend)
    plane.client(HELLO)
    clients[-1].close()
    backend.accepted[-1].close()
    plane.until(lambda: plane.connections.totals.open == FEW + 1)
    plane.clock.advance(LONGEST_RETRY)
    assert backend.accept().recv(9999) == HELLO


def test_who_has_a_hello_of_his_own_does_not_count(plane: Plane) -> None:
    backend = plane.backend("a.example", backlog=100)
    for number in range(8 * FEW):
        plane.client(bytes(hello_of(number)))
        assert backend.accept().recv(9999) == hello_of(number)
    other = plane.backend("b.example")
    plane.client(hello("b.example"))
    assert other.accept().recv(9999) == hello("b.example")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
@pytest.mark.parametrize("owner", [4321, 0])
def test_the_hosts_of_a_user_count_together(plane: Plane, owner: int) -> None:
    """Whoever could make any number of them; the administrator's do not."""
    first, second = (plane.backend(f"{number}.example") for number in range(2))
    for number in range(2):
        os.chown(f"{number}.example", owner, -1)
    for _ in range(FEW + 1):
        plane.client(hello("0.example"))
        first.accept()
    plane.client(hello("1.example"))  # with the same random
    if owner:
        plane.clock.advance(PATIENCE + LONGEST_RETRY)
        assert plane.connections.totals.refused == {"loop": 1}
    else:
        second.accept()


def test_a_link_to_our_own_socket(plane: Plane) -> None:
    """One client, and it goes round as often as it may; then all of it ends."""
    plane.backend("b.example").close()
    os.unlink("b.example/tls-socket")
    before = plane.connections.totals.accepted
    ours = socket.socket(socket.AF_UNIX)
    ours.bind("b.example/tls-socket")
    ours.listen()
    listener = Listener(ours, plane.connections)
    client = plane.client(hello("b.example"))
    plane.turn(20 * FEW)
    # The first is not known yet, and the last waits.
    assert plane.connections.totals.accepted - before == FEW + 2
    plane.clock.advance(PATIENCE + LONGEST_RETRY)
    assert plane.read(client, 7) == alert(80)
    client.close()
    plane.until(lambda: plane.connections.totals.open == 0)
    assert plane.connections.totals.accepted - before == FEW + 2
    listener.close()
