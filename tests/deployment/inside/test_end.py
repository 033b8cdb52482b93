"""What is known when all else is over: no forbidden system call, and the package leaves nothing.

Then the archive has the machine for itself.
"""

import pathlib
import re
import shutil
from collections.abc import Callable

from manual import block
from support import (
    BLOG,
    HERE,
    HOSTS,
    Backend,
    Client,
    Load,
    ask,
    eventually,
    fails,
    follow,
    journal,
    listening_inodes,
    main_pid,
    make_host,
    run,
    shown,
)


def test_no_system_call_was_forbidden() -> None:
    """The units' filter kills; a process that was killed by it died of SIGSYS.

    Who started it tells that; the audit log, which no container has, of whatever it was.
    """
    lines = journal("--output=short-monotonic").splitlines()
    assert any("sniproxy" in line and "event=start" in line for line in lines)
    assert [line for line in lines if "SIGSYS" in line or "status=31/SYS" in line] == []
    if run("systemd-detect-virt", "--container", check=False).strip() == "none":
        assert kills() == []
        run("systemd-run", "--property=SystemCallFilter=~uname", "uname")
        eventually("the audit log shows what was killed just to see it", kills)


def kills() -> list[str]:
    """Give what the audit log says of seccomp, as the kernel or as systemd writes it."""
    lines = journal().splitlines()
    return [line for line in lines if "type=1326 " in line or "SECCOMP auid=" in line]


def test_removing_it_stops_it() -> None:
    run("systemctl", "start", "sniproxy.socket", "sniproxy.service")
    run("dpkg", "--remove", "sniproxy")
    assert fails("systemctl", "is-active", "sniproxy.socket", "sniproxy.service").split() == [
        "inactive",
        "inactive",
    ]
    assert not pathlib.Path("/usr/bin/sniproxy").exists()


def test_purging_it_leaves_nothing() -> None:
    run("dpkg", "--purge", "sniproxy")
    assert run("find", "/etc", "/srv", "/usr", "/var", "-name", "*sniproxy*") == ""


def test_purging_it_keeps_the_hosts() -> None:
    """Also one that has the name of the executable, and a directory that is somewhere else."""
    hosts = [make_host("kept.promise.example"), make_host("sniproxy")]
    run("dpkg", "--install", HERE / "old.deb")
    run("dpkg", "--purge", "sniproxy")
    assert sorted(HOSTS.iterdir()) == hosts

    HOSTS.rename("/srv/elsewhere")
    HOSTS.symlink_to("elsewhere")
    run("dpkg", "--install", HERE / "old.deb")
    run("dpkg", "--purge", "sniproxy")
    assert HOSTS.is_symlink()
    assert set(hosts) <= set(HOSTS.iterdir())
    HOSTS.unlink()
    shutil.rmtree("/srv/elsewhere")


def test_the_other_flavour_takes_its_place(backend_at: Callable[..., Backend]) -> None:
    """A purge of what was there before takes nothing away from it."""
    run("dpkg", "--install", HERE / "old.deb")
    assert "conflict" in fails("dpkg", "--install", HERE / "hashed.deb")
    run("dpkg", "--remove", "sniproxy")
    run("dpkg", "--install", HERE / "hashed.deb")
    run("systemctl", "enable", "--now", "sniproxy.socket")
    run("dpkg", "--purge", "sniproxy")
    assert run("systemctl", "is-enabled", "sniproxy.socket").strip() == "enabled"
    assert (HOSTS / "var" / "tmp").is_dir()
    name = run("sniproxy-hostname", "--", BLOG).strip()
    backend_at(make_host(name) / "tls-socket", "the blog")
    assert ask(BLOG) == "the blog"
    shutil.rmtree(HOSTS / name)
    run("dpkg", "--purge", "sniproxy-hashed")
    assert run("find", "/etc", "/srv", "/usr", "/var", "-name", "*sniproxy*") == ""


def test_the_archive_serves_as_well(backend_at: Callable[..., Backend]) -> None:
    (archive,) = HERE.glob("sniproxy-*-linux.tar.xz")
    folder = archive.name.removesuffix(".tar.xz")
    (named,) = re.findall(r"^tar -xf (\S+)\.tar", block("start/served-name.md", "From an archive"))
    follow(block("start/served-name.md", "From an archive").replace(named, folder))
    assert pathlib.Path("/usr/local/bin/sniproxy").exists()
    follow(block("README.md", "Deploy it", 0).replace(named, folder))
    follow(block("README.md", "Deploy it", 3))
    assert run("systemctl", "is-enabled", "sniproxy-stale.service").strip() == "enabled"
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    assert ask(BLOG) == "the blog"
    assert BLOG in run("/usr/local/bin/sniproxy-check", "--user", "sniproxy", HOSTS)

    with Load(BLOG) as load, Client(BLOG) as client:
        assert client.ask() == "the blog"
        eventually("the start is over", lambda: shown("SubState") == "running")
        before = main_pid(), listening_inodes()
        commands = block("how-to/upgrading.md", "From an archive")
        (named,) = re.findall(r"^tar -xf (\S+)\.tar", commands)
        newer = run("tar", "-tf", HERE / "newer.tar.xz").partition("/")[0]
        (HERE / "newer.tar.xz").rename(HERE / f"{newer}.tar.xz")
        follow(commands.replace(named, newer))
        load.more()
        assert client.ask() == "the blog"
    assert main_pid() != before[0]
    assert listening_inodes() == before[1]
    assert f" version={newer.split('-')[1]} " in journal("--unit=sniproxy.service", "--lines=20")

    run("systemctl", "disable", "--now", "sniproxy.socket", "sniproxy.service")
    run("sh", HERE / folder / "chroot" / "install", "--remove")
    files = run("find", "/usr/local", "-name", "*sniproxy*", "!", "-type", "d")
    assert files == ""
