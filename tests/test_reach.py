"""All look-ups of one client, in real directories. That it does as ``Arrival`` does by itself is
shown by tests/end_to_end/test_isolation.py."""

import os
import pathlib
import socket

from sniproxy.parser.alert import Alert
from sniproxy.resolver.answer import UNSURE, Answer, Outcome
from sniproxy.resolver.hosts import Hosts
from sniproxy.resolver.reach import Barred, fault, hanging, reach
from tests.end_to_end.harness import Backend


def listen(directory: str, name: str = "tls-socket") -> socket.socket:
    pathlib.Path(directory).mkdir(exist_ok=True)
    made = socket.socket(socket.AF_UNIX)
    made.bind(f"{directory}/{name}")
    made.listen()
    return made


def said(hosts: Hosts, host: str, validates: int = 0) -> Answer:
    answer, backend = reach(hosts, host, validates)
    assert (backend is not None) == (answer.outcome == Outcome.REACHED)
    if backend is not None:
        backend.close()
    return answer


def test_a_host_of_its_own(hosts: Hosts) -> None:
    with listen("a.example") as listening:
        pathlib.Path("a.example/send-proxy-v1").touch()
        answer, backend = reach(hosts, "a.example", 0)
        assert answer == Answer(Outcome.REACHED, "", 1)
        assert backend is not None
        backend.send(b"hello")
        stream, _ = listening.accept()
        with stream:
            assert stream.recv(9) == b"hello"
        assert backend.gettimeout() == 0
        backend.close()


def test_entries_that_serve_many(hosts: Hosts) -> None:
    with listen("_.example"), listen("_nosni"), listen("_default"):
        assert said(hosts, "a.example").line == "_.example"
        assert said(hosts, "a.b.example").line == "_default"
        assert said(hosts, "").line == "_nosni"


def test_who_validates(hosts: Hosts) -> None:
    with listen("a.example"):
        assert said(hosts, "a.example", 1).line == said(hosts, "a.example", UNSURE).line
        with listen("a.example", "acme-tls-socket"):
            assert said(hosts, "a.example", 1).line == "a.example/acme-tls-socket"
            assert said(hosts, "a.example", UNSURE) == Answer(Outcome.WHOLE, "a.example")
            assert said(hosts, "a.example") == Answer(Outcome.REACHED, "")
    with listen("_default"), listen("_default", "acme-tls-socket"):
        assert said(hosts, "b.example", UNSURE).outcome == Outcome.WHOLE


def test_refusals(hosts: Hosts) -> None:
    assert said(hosts, "a.example")[:5] == (1, "a.example", 0, 112, "no_such_host")
    assert said(hosts, "")[:5] == (1, "", 0, 112, "no_server_name")
    pathlib.Path("a.example").mkdir()
    assert said(hosts, "a.example")[:5] == (1, "a.example", 0, 112, "no_socket")
    pathlib.Path("a.example/wait-for-backend").touch()
    assert said(hosts, "a.example").outcome == Outcome.MAY_PASS


def test_a_full_queue_may_pass(hosts: Hosts) -> None:
    pathlib.Path("a.example").mkdir()
    backend = Backend(pathlib.Path("a.example"), 0)
    first, held = reach(hosts, "a.example", 0)
    assert first.outcome == Outcome.REACHED
    answer = said(hosts, "a.example")
    assert answer[:5] == (Outcome.MAY_PASS, "a.example", 0, 80, "queue_full")
    assert held is not None
    held.close()
    backend.close()


def test_it_is_said_whose_entry_is_gone_into(hosts: Hosts) -> None:
    """Before anything in it is looked up; and who is barred is not gone into."""
    owners: list[int] = []
    hosts.entering = owners.append
    with listen("a.example"), listen("_default"):
        said(hosts, "a.example")
        said(hosts, "b.example")
        assert owners == [os.geteuid()] * 2

        def bar(owner: int) -> None:
            raise Barred(owner, "owner_slow", passes=False)

        hosts.entering = bar
        for host in ("a.example", "b.example"):
            answer = said(hosts, host)
            assert answer[3:] == (80, "owner_slow", 0, os.geteuid())


def test_what_is_said_of_faults() -> None:
    assert fault("a", OSError(12, "no memory"))[3:6] == (80, "backend_fault", 12)
    assert fault("a", ValueError())[3:6] == (Alert.INTERNAL_ERROR, "resolver_fault", 0)
    assert hanging(7)[0:2] == (Outcome.MAY_PASS, "")
    assert hanging(7).owner == 7
