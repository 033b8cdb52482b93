"""Hosts in the hands of users: the sticky directory, group and ACL recipes."""

import os
import pathlib
from collections.abc import Callable

import pytest
from support import (
    BLOG,
    HOSTS,
    SHOP,
    Backend,
    ask,
    drop_in,
    eventually,
    fails,
    make_host,
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
    drop_in("sniproxy.service.d/users.conf")
    hosts.chmod(0o1777)
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


def test_the_mode_of_the_hosts_directory_is_the_administrator_s(hosts: pathlib.Path) -> None:
    hosts.chmod(0o1777)
    run("systemd-tmpfiles", "--create")
    assert hosts.stat().st_mode & 0o7777 == 0o1777


def delegated(directory: pathlib.Path) -> None:
    """Check that the proxy's user may connect and change nothing, and others nothing at all."""
    assert ask(BLOG) == "alice's"
    assert "ok" in run("sniproxy-check", "--user", "sniproxy", HOSTS)
    fails("touch", directory / "mine", user="sniproxy")
    fails("rm", "-f", directory / "tls-socket", user="sniproxy")
    fails("ls", directory, user="bob")
    fails("stat", directory / "tls-socket", user="bob")
    run("touch", directory / "send-proxy-v1", user="alice")


def test_delegation_by_group(backend_at: Start) -> None:
    directory = make_host(BLOG, "--owner=alice", "--group=sniproxy", "--mode=2710")
    backend_at(directory / "tls-socket", "alice's", umask="007")
    delegated(directory)


def test_delegation_by_acl(backend_at: Start) -> None:
    directory = make_host(BLOG, "--owner=alice", "--group=alice", "--mode=700")
    run("setfacl", "-m", "u:sniproxy:x", directory)
    run("setfacl", "-d", "-m", "u:sniproxy:rw", directory)
    backend_at(directory / "tls-socket", "alice's", umask="007")
    delegated(directory)


def test_check_says_what_a_umask_has_taken(backend_at: Start) -> None:
    directory = make_host(BLOG, "--owner=alice", "--group=sniproxy", "--mode=2710")
    backend_at(directory / "tls-socket", "alice's", umask="027")
    with pytest.raises(OSError, match=r"UNRECOGNIZED_NAME|unrecognized name"):
        ask(BLOG)
    assert "permission denied" in fails("sniproxy-check", "--user", "sniproxy", HOSTS)
