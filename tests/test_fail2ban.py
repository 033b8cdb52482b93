"""The filter for fail2ban: it finds who is refused, and no address that a client makes up.

Debian's own fail2ban-regex reads lines that the data plane has written. No daemon is started.
"""

import pathlib
import re
import shutil
import socket
import subprocess

import pytest

from sniproxy.dataplane.announced import AnnouncedArrival
from sniproxy.log.log import Clients
from sniproxy.parser.proxy_header import version_2
from tests.end_to_end.harness import reset
from tests.hello import hello, message, records
from tests.plane import Plane
from tests.programs import need

FILES = pathlib.Path(__file__).parents[1] / "chroot" / "monitoring" / "fail2ban"
FILTER = FILES / "filter.d" / "sniproxy.conf"
HERE = "127.0.0.1"
THERE = "6.6.6.6"
"""Whom hostile names want to have banned."""

ABUSE = "event=connection client=6.6.6.6:1 local=127.0.0.1:443 host=a end=refused:not_a_host_name"
HOSTILE = (
    f" {ABUSE} hello_ms=none",
    f"\n{ABUSE} hello_ms=none",
    f'" {ABUSE} hello_ms=none',
    f'a" end=refused:not_a_host_name hello_ms=0\n{ABUSE} hello_ms=none',
    f'\\" client={THERE}:1 local=x host=" end=refused:not_a_host_name hello_ms=none',
    f"client={THERE}:1",
    f"[{THERE}]:1",
    THERE,
    f"\r\ntime=2026-01-01T00:00:00.000Z level=info {ABUSE} hello_ms=none",
    f"\0 sniproxy[1]: {ABUSE} hello_ms=none",
    f"2026-01-01 00:00:00 {THERE}",
)

FORMS = {
    "file": lambda line: line,
    "journal": lambda line: re.sub(r"^time=\S+ level=\w+ ", "host sniproxy[17]: ", line),
    "syslog": lambda line: re.sub(
        r"^time=\S+ level=\w+ ", "Nov 27 04:28:25 a-host sniproxy[17]: ", line
    ),
}
"""A line as it is in a file with standard error, as fail2ban makes it of the journal's, and as
syslog's."""


@pytest.fixture(scope="module")
def regex() -> str:
    return need("fail2ban-regex", "fail2ban")


def refuse(plane: Plane, *first: bytes, name: str | None = None, who: str | None = None) -> None:
    """Have a client refused, announced by a balancer where it is to be somebody else."""
    head = b"" if who is None else version_2((who, 40000), ("2001:db8::1", 443), "")
    kind = {} if who is None else {"kind": AnnouncedArrival}
    wire = hello(name) if name is not None else b"".join(first)
    client = plane.client(head + wire, **kind)
    assert plane.read(client, 99)[:1] == b"\x15"
    reset(client)


def found(regex: str, lines: list[str], folder: pathlib.Path, mode: str = "normal") -> list[str]:
    """Give the addresses that the filter finds, in the order of the lines."""
    log = folder / "lines"
    log.write_text("".join(f"{line}\n" for line in lines))
    done = subprocess.run(
        [regex, "--out", "ip", log, f"{FILTER}[mode={mode}]"],
        stdout=subprocess.PIPE,
        check=False,
        text=True,
        timeout=60,
    )
    return done.stdout.split()


@pytest.mark.parametrize("form", FORMS)
def test_who_is_no_tls_client_is_found(
    plane: Plane, regex: str, tmp_path: pathlib.Path, form: str
) -> None:
    """IPv4, IPv6, and IPv4 that came by a socket for both, with names that lay traps."""
    expected = []
    for who in (None, "2001:db8:1:2:3:4:5:6", "2001:db8::77", "::ffff:192.0.2.7"):
        refuse(plane, b"GET / HTTP/1.1\r\n\r\n", who=who)
        for name in HOSTILE:
            refuse(plane, name=name, who=who)
        address = HERE if who is None else who.removeprefix("::ffff:")
        # That which can be a host name is one that is not here.
        expected += [address] * (1 + len(HOSTILE) - 1)
    lines = [FORMS[form](line) for line in plane.log.splitlines()]
    assert len(lines) == 4 * (1 + len(HOSTILE))
    assert found(regex, lines, tmp_path) == expected
    all_of_them = found(regex, lines, tmp_path, "aggressive")
    assert len(all_of_them) == len(lines)
    assert THERE not in all_of_them


@pytest.mark.parametrize("form", ["file", "journal"])
def test_others_are_not(plane: Plane, regex: str, tmp_path: pathlib.Path, form: str) -> None:
    """Who is served, or reset, or idle, or comes to a host that is down, or says nothing."""
    backend = plane.backend("a.example")
    pathlib.Path("down.example").mkdir()
    served = plane.client(hello("a.example"))
    backend.accept().recv(9999)
    reset(served)
    plane.until(lambda: "end=reset_by_client" in plane.log)
    backend.accepted[-1].close()
    refuse(plane, name="down.example")
    nothing = plane.client()
    nothing.shutdown(socket.SHUT_WR)
    plane.read(nothing, 99)
    # A balancer that sends no header is to stay one.
    plane.read(plane.client(hello("-"), kind=AnnouncedArrival), 99)
    served = plane.client(hello("a.example"))
    with backend.accept() as stream:
        stream.recv(9999)
    assert plane.read(served, 99) == b""
    served.close()
    plane.until(lambda: "end=closed" in plane.log)
    plane.connections.log.warning("backend_fault", host=f"a {ABUSE} hello_ms=0")
    plane.connections.log.info("refused", count=5, not_a_host_name=5, names="a.example:5")
    lines = plane.log.splitlines()
    assert len(lines) == 7
    lines += [
        lines[0].replace("reset_by_client", how) for how in ("idle", "open", "outbid", "stopped")
    ]
    lines = [FORMS[form](line) for line in lines]
    for mode in ("normal", "aggressive"):
        assert found(regex, lines, tmp_path, mode) == []


def test_scanners_are_found_where_that_is_asked_for(
    plane: Plane, regex: str, tmp_path: pathlib.Path
) -> None:
    refuse(plane, name="no.example")
    refuse(plane, records(message(b"")))
    assert found(regex, plane.log.splitlines(), tmp_path) == []
    assert found(regex, plane.log.splitlines(), tmp_path, "aggressive") == [HERE] * 2


@pytest.mark.parametrize("clients", [Clients.PREFIX, Clients.NONE])
def test_no_network_is_taken_for_an_address(
    plane: Plane, regex: str, tmp_path: pathlib.Path, clients: Clients
) -> None:
    plane.connections.log.clients = clients
    refuse(plane, b"GET")
    refuse(plane, b"GET", who="2001:db8::77")
    assert found(regex, plane.log.splitlines(), tmp_path, "aggressive") == []


def test_fail2ban_accepts_the_jail(regex: str, tmp_path: pathlib.Path) -> None:
    """As its own client reads all of its configuration: nothing is started by that."""
    configuration = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", configuration)
    shutil.copytree(FILES, configuration, dirs_exist_ok=True)
    done = subprocess.run(
        ["fail2ban-client", "-c", configuration, "-d"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert "['add', 'sniproxy', 'systemd']" in done.stdout
    assert "'_SYSTEMD_UNIT=sniproxy.service'" in done.stdout
    assert "['set', 'sniproxy', 'maxretry', 10]" in done.stdout
