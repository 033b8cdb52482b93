"""The other sniproxy, of which Debian has a package: ours takes its place, and there is a way back.

It runs when these tests begin, enabled for systemd and for init scripts.
"""

import pathlib

import pytest
from manual import block
from support import HERE, eventually, follow, listening_inodes, run, shown


@pytest.fixture(scope="session", autouse=True)
def package() -> None:
    """Install nothing yet."""


def serving() -> list[str]:
    """Name the programs called sniproxy that run, when one listens."""
    lines = run("pgrep", "--exact", "--list-full", "sniproxy", check=False).splitlines()
    return sorted({line.split()[1] for line in lines}) if listening_inodes() else []


def test_what_started_the_other_program_does_not_start_this_one() -> None:
    eventually("the other one serves", listening_inodes)
    assert run("find", "/etc", "-name", "S*sniproxy") != ""
    run("dpkg", "--install", HERE / "old.deb")
    assert sorted(run("find", "/etc", "-name", "*sniproxy*").split()) == [
        "/etc/needrestart/conf.d/sniproxy.conf",
        "/etc/sniproxy.conf.dpkg-bak",
    ]
    assert run("find", "/var/lib/systemd", "-name", "*sniproxy.service*") == ""
    assert serving() == ["/usr/sbin/sniproxy"]
    assert shown("ActiveState", "sniproxy.socket") == "inactive"
    run("pkill", "--exact", "sniproxy")
    eventually("the port is free", lambda: not listening_inodes())
    run("systemctl", "enable", "--now", "sniproxy.socket")
    assert len(listening_inodes()) == 1


def test_the_way_back() -> None:
    (package,) = pathlib.Path("/opt/other").glob("*.deb")
    kept = pathlib.Path("/etc/sniproxy.conf.dpkg-bak").read_text()
    commands = block("how-to/moving/sniproxy.md", "From dlundquist's sniproxy", 1)
    assert commands.count("'sniproxy=0.6*'") == 1
    follow(commands.replace("'sniproxy=0.6*'", f"-y {package}"))
    assert pathlib.Path("/etc/sniproxy.conf").read_text() == kept
    eventually("the other one serves", serving)
    assert serving() == ["/usr/sbin/sniproxy"]
    run("pkill", "--exact", "sniproxy")
    eventually("the port is free", lambda: not listening_inodes())
