"""Hosts in the hands of users: the sticky directory, group and ACL recipes."""

import os
import pathlib
from collections.abc import Callable

import pytest
from manual import block
from support import (
    BLOG,
    HOSTS,
    SHOP,
    Backend,
    ask,
    eventually,
    fails,
    follow,
    run,
    shown,
)

pytestmark = pytest.mark.usefixtures("proxy")
Start = Callable[..., Backend]


def test_a_user_adds_a_host_and_keeps_it(backend_at: Start, hosts: pathlib.Path) -> None:
    hosts.chmod(0o1777)
    host = hosts / BLOG
    run("mkdir", host, user="alice")
    backend_at(host / "tls-socket", "alice's")
    assert ask(BLOG) == "alice's"
    fails("mkdir", host, user="bob")
    fails("rm", "-rf", host, user="bob")
    fails("mv", host, hosts / SHOP, user="bob")
    fails("ln", "-sfT", "elsewhere", host, user="bob")
    fails("ln", "-sf", "elsewhere", host / "tls-socket", user="bob")
    assert ask(BLOG) == "alice's"
    run("rm", "-r", host, user="alice")
    with pytest.raises(OSError, match=r"UNRECOGNIZED_NAME|unrecognized name"):
        ask(BLOG)


def test_a_group_adds_hosts(backend_at: Start, hosts: pathlib.Path) -> None:
    run("groupadd", "--force", "webmasters")
    run("usermod", "--append", "--groups=webmasters", "alice")
    run("chgrp", "webmasters", hosts)
    hosts.chmod(0o1775)
    try:
        run("mkdir", hosts / BLOG, user="alice")
        fails("mkdir", hosts / SHOP, user="bob")
        backend_at(hosts / BLOG / "tls-socket", "alice's")
        assert ask(BLOG) == "alice's"
    finally:
        run("chgrp", "root", hosts)


def test_no_user_takes_the_name_of_the_executable(backend_at: Start, hosts: pathlib.Path) -> None:
    follow(block("how-to/users.md", "Everybody makes hosts"))
    run("mkdir", hosts / BLOG, hosts / "sniproxy", user="alice")
    backend_at(hosts / BLOG / "tls-socket", "alice's")
    assert ask(BLOG) == "alice's"
    run("systemctl", "restart", "sniproxy.service")
    assert ask(BLOG) == "alice's"
    eventually("the start is over", lambda: shown("SubState") == "running")
    assert os.listdir(hosts / "usr") == []
    for name in ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"):
        assert (hosts / name).stat().st_uid == 0
        fails("rmdir", hosts / name, user="alice")


def test_nobody_but_root_serves_many_hosts(backend_at: Start, hosts: pathlib.Path) -> None:
    """In the jail all other users look like one, PrivateUsers=."""
    hosts.chmod(0o1777)

    def refused() -> None:
        with pytest.raises(OSError, match=r"UNRECOGNIZED_NAME|unrecognized name"):
            ask(BLOG)

    entries = (hosts / "_.promise.example", hosts / "_default")
    try:
        for entry in entries:
            run("mkdir", entry, user="alice")
            backend_at(entry / "tls-socket", "caught")
            refused()
            # The directory's own owner is another whom the jail can't tell from alice.
            for owner in ("bob", "nobody", "alice"):
                run("chown", owner, hosts)
                refused()
            run("chown", "root", hosts)
            for owner in ("sniproxy", "bob"):
                run("chown", owner, entry)
                refused()
            run("chown", "root", entry)
            assert ask(BLOG) == "caught"
            # A link of hers to what is root's catches nothing, either.
            run("mv", entry, hosts / "moved.promise.example")
            run("ln", "-s", "moved.promise.example", entry, user="alice")
            refused()
            run("chown", "-h", "root", entry)
            assert ask(BLOG) == "caught"
            fails("rm", entry, user="alice")
            run("rm", "-r", entry, hosts / "moved.promise.example")
        # What is the proxy's own user's counts where the hosts directory is, too.
        run("mkdir", entries[1], user="sniproxy")
        backend_at(entries[1] / "tls-socket", "its own", "sniproxy")
        refused()
        run("chown", "sniproxy", hosts)
        assert ask(BLOG) == "its own"
    finally:
        run("chown", "root", hosts)
        for entry in entries:
            run("rm", "-rf", entry)


def test_the_mode_of_the_hosts_directory_is_the_administrator_s(hosts: pathlib.Path) -> None:
    hosts.chmod(0o1777)
    run("systemd-tmpfiles", "--create")
    assert hosts.stat().st_mode & 0o7777 == 0o1777


def delegated(name: str) -> None:
    """Check that the proxy's user may connect and change nothing, and others nothing at all."""
    directory = HOSTS / name
    assert ask(name) == "alice's"
    assert "ok" in run("sniproxy-check", "--user", "sniproxy", HOSTS)
    fails("touch", directory / "mine", user="sniproxy")
    fails("rm", "-f", directory / "tls-socket", user="sniproxy")
    fails("ls", directory, user="bob")
    fails("stat", directory / "tls-socket", user="bob")
    run("touch", directory / "send-proxy-v1", user="alice")


def test_delegation_by_group(backend_at: Start) -> None:
    follow(block("how-to/users.md", "You make hosts, users run them", 0))
    backend_at(HOSTS / BLOG / "tls-socket", "alice's", umask="007")
    delegated(BLOG)


def test_delegation_by_acl(backend_at: Start) -> None:
    follow(block("how-to/users.md", "You make hosts, users run them", 1))
    backend_at(HOSTS / SHOP / "tls-socket", "alice's", umask="007")
    delegated(SHOP)


def test_check_says_what_a_umask_has_taken(backend_at: Start, hosts: pathlib.Path) -> None:
    hosts.chmod(0o1777)
    mine = hosts / "mine.promise.example"
    follow(block("how-to/users.md", "You make hosts, users run them", 0))
    follow(block("how-to/users.md", "You make hosts, users run them", 1))
    run("mkdir", mine, user="alice")
    for name in (BLOG, SHOP, mine.name):
        backend_at(HOSTS / name / "tls-socket", "alice's", umask="022")
        with pytest.raises(OSError, match=r"UNRECOGNIZED_NAME|unrecognized name"):
            ask(name)
    findings = fails("sniproxy-check", "--user", "sniproxy", HOSTS)
    assert findings.count("permission denied") == 3
