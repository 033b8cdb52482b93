"""Owners that are refused for a minute."""

import os
import pathlib

import pytest

from sniproxy.dataplane.barred import BARRED, MOST, Barred, word
from sniproxy.resolver.hosts import OVERFLOW_UID
from tests.clock import Clock
from tests.hello import hello
from tests.plane import Plane, alert

OWNER, ANOTHER = 54001, 54002

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")


def make(host: str, owner: int) -> None:
    pathlib.Path(host).mkdir(exist_ok=True)
    os.chown(host, owner, -1)


def test_all_hosts_of_an_owner_for_a_minute(plane: Plane) -> None:
    for host, owner in (("a.example", OWNER), ("b.example", OWNER), ("c.example", ANOTHER)):
        make(host, owner)
    clock = Clock()
    barred = Barred(plane.hosts.account, lambda: clock.now)
    barred.bar("a.example")
    assert [barred.holds(f"{name}.example") for name in "abc"] == [True, True, False]
    clock.advance(BARRED - 1)
    assert barred.holds("b.example")
    clock.advance(1)
    assert not barred.holds("b.example")
    assert not barred  # and nobody is asked for any more


def test_who_may_be_anybody_bars_his_own_host_alone(plane: Plane) -> None:
    for host in ("a.example", "b.example"):
        make(host, OVERFLOW_UID)
    for host in ("c.example", "d.example"):
        make(host, 0)
    barred = Barred(plane.hosts.account, lambda: 0)
    barred.bar("a.example")
    barred.bar("c.example")
    assert [barred.holds(f"{name}.example") for name in "abcd"] == [True, False, True, False]


def test_so_many_and_no_more(plane: Plane) -> None:
    barred = Barred(plane.hosts.account, lambda: 0)
    for number in range(MOST + 5):
        make("a.example", OWNER + number)
        barred.bar("a.example")
    assert len(barred) == MOST
    assert OWNER + 5 in barred
    assert OWNER + 4 not in barred


def test_an_owner_by_his_number(plane: Plane) -> None:
    """As who knows whose a host is says it to those who do not."""
    for host, owner in (("a.example", OWNER), ("b.example", ANOTHER)):
        make(host, owner)
    barred = Barred(plane.hosts.account, lambda: 0)
    assert word(barred.bar("a.example")) == f"uid={OWNER}"
    assert barred.bar(f"uid={ANOTHER}") == ANOTHER
    assert barred.holds("b.example")
    assert word("a.example") == "a.example"


def test_what_is_open_ends_and_who_comes_is_refused(plane: Plane) -> None:
    owners = {"a.example": OWNER, "b.example": OWNER, "c.example": ANOTHER}
    clients = {}
    for host, owner in owners.items():
        backend = plane.backend(host)
        os.chown(host, owner, -1)
        clients[host] = plane.client(hello(host))
        backend.accept().recv(9999)
    plane.connections.bar("a.example")
    for host in ("a.example", "b.example"):
        assert plane.read(clients[host], 1) == b""
        assert plane.read(plane.client(hello(host)), 9) == alert(80)
    assert plane.connections.totals.refused == {"owner_barred": 2}
    assert plane.log.count("end=barred") == 2
    clients["c.example"].setblocking(False)
    with pytest.raises(BlockingIOError):
        clients["c.example"].recv(1)
