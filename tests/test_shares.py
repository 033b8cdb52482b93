"""No descriptor is left: whose is given up, and who gets it."""

import errno
import pathlib
import socket
import types
from collections.abc import Callable, Iterator

import pytest

from sniproxy.dataplane import shares
from sniproxy.dataplane.connections import PATIENCE
from sniproxy.dataplane.listener import CROWDED, PAUSE, Listener
from sniproxy.dataplane.shares import FOR_ONE, FORGET, GRACE, HEARING
from sniproxy.dataplane.shares import MOST as SPARES
from sniproxy.dataplane.waiting import FOR_A_DESCRIPTOR
from sniproxy.parser.proxy_header import version_2
from tests.crowd import Crowd
from tests.end_to_end.harness import reset
from tests.hello import hello
from tests.plane import Plane
from tests.test_handover import pass_on
from tests.test_listener import troubled

INTERNAL_ERROR = "alert 80"
HALF = hello("a.example")[:60]
A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
Make = Callable[..., Crowd]


@pytest.fixture
def crowd_of(plane: Plane) -> Iterator[Make]:
    made: list[Crowd] = []

    def make(listening: socket.socket | None = None, **options: bool) -> Crowd:
        listening = listening or socket.create_server(("127.0.0.1", 0), backlog=100)
        made.append(Crowd(plane, listening, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def crowd(crowd_of: Make, plane: Plane) -> Crowd:
    plane.backend("a.example", backlog=100)
    return crowd_of()


def bind(plane: Plane, host: str, backlog: int = 100) -> socket.socket:
    """Listen as a backend that has a path of its own, as servers have by their configuration."""
    pathlib.Path(host).mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{host}/tls-socket")
    listening.listen(backlog)
    plane._clients.append(listening)
    return listening


def unix(crowd_of: Make, folder: pathlib.Path) -> Crowd:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "listening"))
    listening.listen(100)
    return crowd_of(listening)


def spares(plane: Plane) -> int:
    """Count them, when there was time to take them back."""
    plane.clock.advance(shares.PAUSE)
    return len(plane.connections.shares._spares)


def idle(crowd: Crowd, client: socket.socket) -> float:
    return crowd.plane.connections.shares._last(crowd.end_of(client).socket)[1]


# Between addresses.


@pytest.mark.parametrize("logged", [True, False])
def test_who_has_the_most_loses_its_longest_idle_to_who_has_fewer(
    crowd: Crowd, logged: bool
) -> None:
    plane = crowd.plane
    plane.connections.log.connections = logged
    first, second, third = (crowd.join(A) for _ in range(3))
    other = crowd.join(B)
    plane.until(lambda: idle(crowd, second) >= 40)
    for client in (first, third, other):
        client.sendall(b"more")
    plane.until(lambda: max(idle(crowd, one) for one in (first, third, other)) < 40)
    crowd.fill()
    newcomer = crowd.connect(C)
    assert crowd.outcome(newcomer) == "relayed"
    assert crowd.outcome(second) in ("closed", "reset")
    assert all(crowd.is_relayed(client) for client in (first, third, other))
    assert spares(plane) == SPARES
    log = crowd.log()
    assert log.count("event=descriptors_dealt_out\n") == 1
    assert log.count("end=outbid") == logged
    assert not plane.connections.totals.refused


@pytest.mark.parametrize("counted", [True, False])
def test_it_takes_from_one_until_all_have_as_many(crowd: Crowd, counted: bool) -> None:
    """Also until all are counted anew."""
    mine = [crowd.join(A) for _ in range(6)]
    crowd.fill()
    if not counted:
        crowd.plane.connections.shares._census()
        crowd.plane.connections.shares._due = float("inf")
    assert [crowd.outcome(crowd.connect(B)) for _ in range(3)] == ["relayed"] * 3
    # Three each: whoever of them got one more would only be the next to lose it.
    for source in (A, B):
        assert crowd.outcome(crowd.connect(source)) == INTERNAL_ERROR
    assert [crowd.outcome(crowd.connect(C)) for _ in range(2)] == ["relayed"] * 2
    assert crowd.outcome(crowd.connect(C)) == INTERNAL_ERROR
    assert sum(crowd.is_relayed(client) for client in mine) == 2
    assert crowd.plane.connections.totals.refused == {"no_descriptor": 3}


def test_who_is_never_idle_keeps_no_more_for_that(crowd: Crowd) -> None:
    mine = [crowd.join(A) for _ in range(6)]
    others = [crowd.join(B) for _ in range(3)]
    crowd.plane.until(lambda: min(idle(crowd, one) for one in others) >= 40)
    for client in mine:
        client.sendall(b"more")
    crowd.plane.until(lambda: max(idle(crowd, one) for one in mine) < 40)
    crowd.fill()
    assert [crowd.outcome(crowd.connect(C)) for _ in range(2)] == ["relayed"] * 2
    assert all(crowd.is_relayed(client) for client in others)
    assert sum(crowd.is_relayed(client) for client in mine) == 4


@pytest.mark.parametrize("in_slices", [True, False])
def test_who_takes_all_again_between_two_counts_is_not_overlooked(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, in_slices: bool
) -> None:
    """Else another seemed to have the most."""
    plane = crowd.plane
    mine = [crowd.join(A) for _ in range(24)]
    others = [crowd.join(B) for _ in range(2)]
    crowd.fill()
    plane.connections.shares._census()
    plane.connections.shares._due = float("inf")
    for client in mine:
        reset(client)
    plane.until(lambda: plane.connections.totals.open == 2)
    mine = [crowd.join(A) for _ in range(24)]
    if in_slices:
        monkeypatch.setattr(shares, "SLICE", 9)
    newcomer = crowd.connect(C)
    for _ in range(5):
        plane.turn(3)
        plane.clock.advance(PAUSE)
    assert crowd.outcome(newcomer) == "relayed"
    assert all(crowd.is_relayed(client) for client in others)
    assert sum(crowd.is_relayed(client) for client in mine) == 23


def test_nobody_is_ended_for_a_newcomer_of_the_same_address(crowd: Crowd) -> None:
    mine = [crowd.join(A) for _ in range(4)]
    other = crowd.join(B)
    crowd.fill()
    newcomers = [crowd.connect(A) for _ in range(10)]
    assert {crowd.outcome(one) for one in newcomers} == {INTERNAL_ERROR}
    assert all(crowd.is_relayed(client) for client in [*mine, other])
    # Nor do they hold up who comes behind them, whether they say something or not.
    for _ in range(5):
        crowd.connect(A)
    assert crowd.outcome(crowd.connect(A, b"")) == INTERNAL_ERROR
    assert crowd.outcome(crowd.connect(C)) == "relayed"
    assert spares(crowd.plane) == SPARES


def test_where_all_come_from_one_address_nobody_is_ended(crowd: Crowd) -> None:
    """To the same host."""
    mine = [crowd.join(A) for _ in range(4)]
    crowd.fill()
    newcomers = [crowd.connect(A) for _ in range(5)]
    assert {crowd.outcome(one) for one in newcomers} == {INTERNAL_ERROR}
    assert all(crowd.is_relayed(client) for client in mine)
    assert crowd.outcome(crowd.connect(B)) == "relayed"


def test_a_hello_that_comes_later(crowd: Crowd) -> None:
    """Who is entitled has its descriptors kept from those who are not, before it has spoken."""
    plane = crowd.plane
    for _ in range(6):
        crowd.join(A)
    crowd.fill()
    slow = [crowd.connect(source, HALF) for source in (B, C)]
    plane.until(lambda: len(plane.connections.undecided) == 2)
    hasty = [crowd.connect(A, HALF) for _ in range(9)]
    plane.until(lambda: plane.connections.totals.refused.total() >= 7)
    for client in slow:
        client.sendall(hello("a.example")[60:])
        assert crowd.outcome(client) == "relayed"
    for client in hasty:
        client.close()


def test_who_has_as_many_as_anybody_waits_as_ever(crowd: Crowd) -> None:
    """Where nobody has two, there is nobody to lose one; the queue keeps them."""
    plane = crowd.plane
    for source in (A, B):
        crowd.join(source)
    crowd.fill()
    newcomer = crowd.connect(C)
    for _ in range(5):
        plane.turn(3)
        plane.clock.advance(PAUSE)
    assert plane.connections.totals.accepted == 2
    crowd.free(2)
    plane.clock.advance(PAUSE)
    assert crowd.outcome(newcomer) == "relayed"


@pytest.mark.parametrize("handed_over", [True, False])
def test_prefixes_of_ipv6_count_as_one(crowd_of: Make, plane: Plane, handed_over: bool) -> None:
    """As balancers announce them, whose own address counts for nothing, also after a renewal."""
    plane.clock.advance(1)
    plane.backend("a.example", backlog=100)
    crowd = crowd_of(announced=True)

    def first(address: str) -> bytes:
        return version_2((address, 1), ("2001:db8::1", 443), "") + hello("a.example")

    many = [crowd.join(A, first(f"2001:db8:0:1:{n}::1")) for n in range(4)]
    crowd.join(A, first("2001:db8:0:2::1"))
    if handed_over:
        assert pass_on(plane, plane) == len(many) + 1
    crowd.fill()
    assert crowd.outcome(crowd.connect(A, first("2001:db8:0:1:9::1"))) == INTERNAL_ERROR
    assert crowd.outcome(crowd.connect(A, first("2001:db8:0:3::1"))) == "relayed"
    assert sum(crowd.is_relayed(client) for client in many) == 3
    assert spares(plane) == SPARES


def test_who_is_announced_later_costs_nobody_anything_before(crowd_of: Make, plane: Plane) -> None:
    plane.backend("a.example", backlog=100)
    crowd = crowd_of(announced=True)
    wire = {
        address: version_2((address, 1), ("192.0.2.9", 443), "") + hello("a.example")
        for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3")
    }
    many = [crowd.join(A, wire["192.0.2.1"]) for _ in range(4)]
    crowd.join(A, wire["192.0.2.2"])
    crowd.fill()
    same, other = crowd.connect(A, b"\r"), crowd.connect(A, b"\r")
    plane.until(lambda: len(plane.connections.undecided) == 2)
    # More than there are spares: the oldest of the unknown goes, when it had time to speak.
    more = [crowd.connect(A, b"\r") for _ in range(SPARES - 2)]
    for _ in range(5):
        plane.turn(3)
        plane.clock.advance(CROWDED)
    assert not plane.connections.totals.refused
    plane.clock.advance(HEARING)
    assert crowd.outcome(same) in ("alert 90", "reset")
    assert all(crowd.is_relayed(client) for client in many)
    other.sendall(wire["192.0.2.3"][1:])
    assert crowd.outcome(other) == "relayed"
    # One for the newcomer, and none for the descriptors that the unknown hold.
    assert sum(crowd.is_relayed(client) for client in many) >= 3
    for client in more:
        client.close()


# Those who have no backend yet.


def test_who_owes_a_hello_for_long_is_ended_first(crowd: Crowd) -> None:
    mine = [crowd.join(A) for _ in range(4)]
    slow = [crowd.connect(source, HALF) for source in (B, C)]
    crowd.plane.until(lambda: len(crowd.plane.connections.undecided) == 2)
    crowd.fill()
    crowd.plane.clock.advance(GRACE)
    # It is A's own to gain, and there is no need to see who it is.
    assert crowd.outcome(crowd.connect(A)) == "relayed"
    assert {crowd.outcome(one) for one in slow} <= {"alert 90", "reset"}
    assert all(crowd.is_relayed(client) for client in mine)


def test_a_young_hello_is_ended_for_who_has_fewer_and_not_for_who_has_more(crowd: Crowd) -> None:
    mine = [crowd.join(A) for _ in range(4)]
    slow = [crowd.connect(B, HALF) for _ in range(3)]
    crowd.plane.until(lambda: len(crowd.plane.connections.undecided) == 3)
    crowd.fill()
    assert crowd.outcome(crowd.connect(A)) == INTERNAL_ERROR
    assert len(crowd.plane.connections.undecided) == 3
    # Sooner than a relayed connection of who has still more.
    assert crowd.outcome(crowd.connect(C)) == "relayed"
    assert crowd.outcome(slow[0]) in ("alert 90", "reset")
    assert all(crowd.is_relayed(client) for client in mine)


def test_a_hello_makes_room_for_another_of_its_own_address(crowd: Crowd) -> None:
    for source in (A, B):
        crowd.join(source)
    slow = [crowd.connect(A, HALF) for _ in range(3)]
    crowd.plane.until(lambda: len(crowd.plane.connections.undecided) == 3)
    crowd.fill()
    assert crowd.outcome(crowd.connect(A)) == "relayed"
    assert crowd.outcome(slow[0]) in ("alert 90", "reset")


def test_who_is_here_on_what_was_lent_has_nothing_to_give(crowd: Crowd) -> None:
    """Or the descriptors that are held back would become those of connections."""
    plane = crowd.plane
    mine = [crowd.join(A) for _ in range(4)]
    crowd.fill()
    slow = [crowd.connect(A, HALF) for _ in range(3)]
    plane.until(lambda: len(plane.connections.undecided) == 3)
    plane.clock.advance(GRACE)
    assert crowd.outcome(crowd.connect(A)) == INTERNAL_ERROR
    assert {crowd.outcome(one) for one in slow} <= {"alert 90", "reset"}
    assert not plane.connections.shares.lacking()
    assert all(crowd.is_relayed(client) for client in mine)


def test_who_leaves_what_was_lent_gives_it_back_at_once(crowd: Crowd) -> None:
    plane = crowd.plane
    for _ in range(4):
        crowd.join(A)
    crowd.fill()
    slow = crowd.connect(A, HALF)
    plane.until(lambda: len(plane.connections.undecided) == 1)
    assert plane.connections.shares.lacking() == 1
    reset(slow)
    plane.until(lambda: not plane.connections.undecided)
    assert not plane.connections.shares.lacking()


def test_young_hellos_make_room_where_all_are_of_one_address(crowd: Crowd) -> None:
    """One for what was lent to the newcomer, one for its backend."""
    plane = crowd.plane
    mine = [crowd.join(A) for _ in range(4)]
    slow = [crowd.connect(A, HALF) for _ in range(3)]
    plane.until(lambda: len(plane.connections.undecided) == 3)
    crowd.fill()
    another = crowd.connect(A, HALF)
    plane.until(lambda: len(plane.connections.undecided) == 4)
    assert crowd.outcome(crowd.connect(A)) == "relayed"
    assert plane.connections.shares.lacking() == 1
    assert plane.connections.totals.refused == {"evicted": 2}
    assert all(crowd.is_relayed(client) for client in mine)
    for client in (slow[2], another):
        client.close()


def test_who_waits_for_a_backend_is_ended_before_who_has_one(crowd_of: Make, plane: Plane) -> None:
    plane.backend("a.example", backlog=100)
    pathlib.Path("b.example").mkdir()
    pathlib.Path("b.example/wait-for-backend").touch()
    crowd = crowd_of()
    mine = [crowd.join(A) for _ in range(3)]
    waiting = crowd.connect(A, hello("b.example"))
    plane.until(lambda: "b.example" in plane.connections.lines)
    crowd.fill()
    assert crowd.outcome(crowd.connect(B)) == "relayed"
    assert crowd.outcome(waiting) in ("alert 90", "reset")
    assert all(crowd.is_relayed(client) for client in mine)


def test_who_is_only_taking_leave_counts(crowd: Crowd) -> None:
    """A connection whose backend has gone, and whose client stays, is one of its address."""
    plane = crowd.plane
    clients = [crowd.join(A) for _ in range(3)]
    (backend,) = plane._backends
    with crowd.room():
        for _ in clients:
            backend.accept().close()
        backend.accepted.clear()
    plane.until(lambda: not crowd.relayed())
    assert plane.connections.totals.open == 3
    crowd.join(B)
    crowd.fill()
    assert crowd.outcome(crowd.connect(C)) == "relayed"
    assert plane.connections.totals.open == 3


# Between hosts.


def three_hosts(crowd_of: Make, plane: Plane, folder: pathlib.Path) -> Crowd:
    for name in ("a.example", "b.example", "_default"):
        bind(plane, name)
    return unix(crowd_of, folder)


def test_the_host_that_has_the_most_loses_one_to_a_host_that_has_fewer(
    crowd_of: Make, plane: Plane, tmp_path: pathlib.Path
) -> None:
    crowd = three_hosts(crowd_of, plane, tmp_path)
    clients = [crowd.join("") for _ in range(7)]
    crowd.fill()
    plane.connections.shares._census()  # the first to look at who moves
    plane.clock.advance(1)
    idle = clients.pop(3)
    for client in clients:
        client.sendall(b"more")
    plane.turn(9)
    assert crowd.outcome(crowd.connect("", hello("a.example"))) == INTERNAL_ERROR
    assert crowd.outcome(crowd.connect("", hello("b.example"))) == "relayed"
    assert crowd.outcome(idle) in ("closed", "reset")
    assert all(crowd.is_relayed(client) for client in clients)
    assert spares(plane) == SPARES


def test_who_is_not_known_yet_takes_from_the_host_that_has_the_most(
    crowd_of: Make, plane: Plane, tmp_path: pathlib.Path
) -> None:
    """All that is held back may be lent, for as long as others look something up."""
    crowd = three_hosts(crowd_of, plane, tmp_path)
    other = crowd.join("", hello("b.example"))
    clients = [crowd.join("") for _ in range(4)]
    plane.connections.shares._census()
    plane.clock.advance(1)
    for client in clients:
        client.sendall(b"more")
    plane.turn(9)
    crowd.lose_spares()
    crowd.fill()
    assert plane.connections.shares.lend()
    assert crowd.is_relayed(other)
    assert sum(map(crowd.is_relayed, clients)) == 3


def test_who_has_not_said_which_host_it_wants_may_want_one_that_has_few(
    crowd_of: Make, plane: Plane, tmp_path: pathlib.Path
) -> None:
    """So it is not ended for another, as long as a host has more than there are of them."""
    crowd = three_hosts(crowd_of, plane, tmp_path)
    clients = [crowd.join("") for _ in range(4)]
    slow = [crowd.connect("", hello("b.example")[:60]) for _ in range(2)]
    plane.until(lambda: len(plane.connections.undecided) == 2)
    crowd.fill()
    assert crowd.outcome(crowd.connect("")) == INTERNAL_ERROR
    assert crowd.outcome(crowd.connect("", hello("b.example"))) == "relayed"
    assert len(plane.connections.undecided) == 2
    assert sum(map(crowd.is_relayed, clients)) in (2, 3)
    for client in slow:
        client.close()


@pytest.mark.parametrize("counted", [True, False])
def test_a_default_is_one_host_for_all_names(
    crowd_of: Make, plane: Plane, tmp_path: pathlib.Path, counted: bool
) -> None:
    crowd = three_hosts(crowd_of, plane, tmp_path)
    for _ in range(4):
        crowd.join("")
    crowd.fill()
    if not counted:
        plane.connections.shares._census()
        plane.connections.shares._due = float("inf")
    names = [hello(f"x{n}.example") for n in range(4)]
    outcomes = [crowd.outcome(crowd.connect("", name)) for name in names]
    assert outcomes == ["relayed", "relayed", INTERNAL_ERROR, INTERNAL_ERROR]


def test_a_host_that_is_not_there_costs_nobody_anything(
    crowd_of: Make, plane: Plane, tmp_path: pathlib.Path
) -> None:
    bind(plane, "a.example")
    pathlib.Path("b.example").mkdir()
    pathlib.Path("b.example/wait-for-backend").touch()
    bind(plane, "full.example", backlog=0)
    crowd = unix(crowd_of, tmp_path)
    clients = [crowd.join("") for _ in range(3)]
    crowd.join("", hello("full.example"))
    crowd.fill()
    assert crowd.outcome(crowd.connect("", hello("no.example"))) == "alert 112"
    # Nobody waits on what was lent.
    assert crowd.outcome(crowd.connect("", hello("b.example"))) == "alert 112"
    assert crowd.outcome(crowd.connect("", hello("full.example"))) == INTERNAL_ERROR
    assert all(crowd.is_relayed(client) for client in clients)
    assert spares(plane) == SPARES
    assert not plane.connections.lines


def test_nobody_waits_in_a_line_on_what_was_lent(
    crowd_of: Make, plane: Plane, tmp_path: pathlib.Path
) -> None:
    bind(plane, "a.example")
    pathlib.Path("b.example").mkdir()
    pathlib.Path("b.example/wait-for-backend").touch()
    crowd = unix(crowd_of, tmp_path)
    for _ in range(3):
        crowd.join("")
    waiting = crowd.connect("", hello("b.example"))
    plane.until(lambda: "b.example" in plane.connections.lines)
    crowd.fill()
    assert crowd.outcome(crowd.connect("", hello("b.example"))) == INTERNAL_ERROR
    assert spares(plane) == SPARES
    assert "b.example" in plane.connections.lines
    waiting.close()


def test_a_loop_does_not_linger_on_what_was_lent(
    crowd_of: Make, plane: Plane, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(plane, "a.example")
    crowd = unix(crowd_of, tmp_path)
    for _ in range(3):
        crowd.join("")
    crowd.fill()
    for question in ("again", "full"):
        monkeypatch.setattr(plane.connections.loops, question, lambda _: True)
    assert crowd.outcome(crowd.connect("")) == INTERNAL_ERROR
    assert plane.connections.totals.refused == {"loop": 1}
    assert plane.connections.totals.open == 3
    assert spares(plane) == SPARES


# The spares, and the count.


def test_spares_come_back(crowd: Crowd) -> None:
    plane = crowd.plane
    for _ in range(3):
        crowd.join(A)
    crowd.fill()
    # The oldest of them goes for the fourth.
    slow = [crowd.connect(A, HALF) for _ in range(SPARES)]
    plane.until(lambda: len(plane.connections.undecided) == SPARES - 1)
    plane.clock.advance(HEARING)
    plane.until(lambda: bool(plane.connections.totals.refused))
    assert spares(plane) == 1
    assert plane.connections.totals.refused == {"evicted": 1}
    assert plane.connections.totals.accepted == 3 + SPARES
    for client in slow:
        client.close()
    plane.until(lambda: not plane.connections.undecided)
    plane.clock.advance(shares.PAUSE)
    assert spares(plane) == SPARES
    # Nobody asks any more: nothing is kept, nothing runs.
    plane.clock.advance(FORGET + shares.PAUSE)
    assert not plane.connections.shares._known.addresses
    assert all(due > FORGET for due, *_ in plane.clock._due)


def test_without_spares_the_greatest_gives_one_back(crowd: Crowd) -> None:
    for _ in range(9):
        crowd.join(A)
    crowd.lose_spares()
    crowd.fill()
    assert crowd.outcome(crowd.connect(B)) == "relayed"


def test_what_is_lent_is_taken_last(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end would give nothing."""
    for _ in range(3):
        crowd.join(A)
    connections = crowd.plane.connections
    lent, waiting, relayed = connections.totals.clients
    holders = {
        lent: types.SimpleNamespace(undecided=False, lent=True),
        waiting: types.SimpleNamespace(undecided=False, lent=False),
        relayed: connections.shares._holder(relayed),
    }
    monkeypatch.setattr(connections.shares, "_holder", holders.get)
    assert sorted(holders, key=connections.shares._last) == [lent, relayed, waiting]


def test_nobody_is_ended_for_what_is_back_in_a_moment(crowd: Crowd) -> None:
    clients = [crowd.join(A) for _ in range(9)]
    shares = crowd.plane.connections.shares
    crowd.lose_spares()
    crowd.fill()
    assert not shares.lend(back_soon=True)
    assert all(map(crowd.is_relayed, clients))
    assert shares.lend()
    assert sum(map(crowd.is_relayed, clients)) == 8


def test_without_spares_who_is_entitled_is_not_ended_for_who_comes(crowd: Crowd) -> None:
    """Nobody can see who that is."""
    plane = crowd.plane
    for _ in range(9):
        crowd.join(A)
    slow = crowd.connect(B, HALF)
    plane.until(lambda: len(plane.connections.undecided) == 1)
    plane.clock.advance(HEARING)
    crowd.lose_spares()
    crowd.fill()
    for _ in range(5):
        assert crowd.outcome(crowd.connect(A)) == INTERNAL_ERROR
    slow.sendall(hello("a.example")[60:])
    assert crowd.outcome(slow) == "relayed"


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
def test_where_a_lent_descriptor_does_not_help(crowd_of: Make, plane: Plane, error: int) -> None:
    """Others of this machine may be quicker to take it: nobody is ended, and it pauses."""
    plane.backend("a.example", backlog=100)
    listening = troubled()
    crowd = crowd_of(listening)
    clients = [crowd.join(A) for _ in range(3)]
    listening.errors = [error] * 4
    newcomer = crowd.connect(B)
    plane.turn(5)
    assert len(listening.errors) == 2
    plane.clock.advance(PAUSE)
    plane.turn(5)
    plane.clock.advance(PAUSE)
    assert crowd.outcome(newcomer) == "relayed"
    assert all(crowd.is_relayed(client) for client in clients)
    plane.clock.advance(shares.PAUSE)
    assert spares(plane) == SPARES


def test_a_machine_that_has_none_left(crowd: Crowd) -> None:
    """What is given up for a newcomer may be taken by others: no more than a few are."""
    plane = crowd.plane
    clients = [crowd.join(A) for _ in range(12)]
    newcomer = crowd.connect(B, HALF)
    plane.until(lambda: len(plane.connections.undecided) == 1)
    crowd.fill()
    crowd.full = 3  # whatever is given back is gone
    crowd._limit(3)
    crowd.lose_spares()
    newcomer.sendall(hello("a.example")[60:])
    assert crowd.outcome(newcomer) == INTERNAL_ERROR
    assert 12 - FOR_ONE <= sum(crowd.is_relayed(client) for client in clients) < 12


def test_other_workers_have_their_chance_first(plane: Plane, crowd_of: Make) -> None:
    plane.backend("a.example", backlog=100)
    told: list[bool] = []
    listening = socket.create_server(("127.0.0.1", 0), backlog=100)
    crowd = crowd_of(listening)
    crowd.listener.close()
    with crowd.room():
        listening = socket.create_server(("127.0.0.1", 0), backlog=100)
    crowd.address = listening.getsockname()
    crowd.listener = Listener(listening, plane.connections, lambda: told.append(True))
    for _ in range(3):
        crowd.join(A)
    crowd.fill()
    crowd.connect(A)
    newcomer = crowd.connect(B)
    plane.turn(5)
    assert (told, plane.connections.totals.accepted) == ([True], 3)
    plane.clock.advance(CROWDED)
    assert crowd.outcome(newcomer) == "relayed"
    assert told == [True]


def test_many_are_counted_in_slices(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until all are, nobody is ended, refused or let in."""
    plane = crowd.plane
    monkeypatch.setattr(shares, "SLICE", 3)
    clients = [crowd.join(A) for _ in range(8)]
    crowd.fill()
    newcomers = [crowd.connect(A), crowd.connect(B)]
    plane.turn(5)
    assert plane.connections.totals.accepted == 8
    for left in (2, 0):
        assert plane.connections.totals.accepted == 8
        plane.clock.advance(shares.PAUSE)
        assert len(plane.connections.shares._uncounted) == left
    plane.clock.advance(PAUSE)
    assert [crowd.outcome(one) for one in newcomers] == [INTERNAL_ERROR, "relayed"]
    assert sum(crowd.is_relayed(client) for client in clients) == 7


def test_counting_has_a_bounded_price(crowd: Crowd) -> None:
    """From one census to the next it takes many times as long as it took."""
    plane = crowd.plane
    ours = plane.connections.shares
    now = 0.0

    def clock() -> float:  # between two looks at it a second goes by
        nonlocal now
        now += 1
        return now

    ours._clock = clock
    first, done = ours._census(), now
    assert first is ours._known
    while ours._census() is first:
        pass
    assert now - done >= shares.REST * 1.0


def test_who_waits_for_a_descriptor_is_not_pushed_aside(crowd: Crowd) -> None:
    """As nobody has two, the line is as it was."""
    plane = crowd.plane
    for source in (A, B):
        crowd.join(source)
    crowd.fill()
    crowd.free(1)
    waiting = crowd.connect(C)
    plane.until(lambda: FOR_A_DESCRIPTOR in plane.connections.lines)
    plane.clock.advance(PATIENCE + 0.1)
    assert crowd.outcome(waiting) == INTERNAL_ERROR
