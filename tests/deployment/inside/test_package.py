"""The package: what it brings, and an upgrade under load."""

import os
import pathlib
from collections.abc import Callable

import pytest
from support import (
    BLOG,
    EXECUTABLE,
    HERE,
    Backend,
    Load,
    ask,
    eventually,
    listening_inodes,
    main_pid,
    make_host,
    run,
    shown,
)

pytestmark = pytest.mark.usefixtures("proxy")


def version() -> str:
    return run("dpkg-query", "-W", "-f", "${Version}", "sniproxy")


def test_what_it_brings() -> None:
    for name in ("sniproxy-hostname", "sniproxy-check", "sniproxy-listen", "sniproxy-status"):
        assert os.readlink(f"/usr/bin/{name}") == "sniproxy"
    assert run("systemctl", "is-enabled", "sniproxy.socket").strip() == "enabled"
    # Nobody looks in unless asked to.
    assert shown("UnitFileState", "sniproxy-status.socket") == "disabled"
    account = run("getent", "passwd", "sniproxy").strip().split(":")
    assert account[5:] == ["/srv/sniproxy", "/usr/sbin/nologin"]
    hosts = pathlib.Path("/srv/sniproxy").stat()
    assert (hosts.st_uid, hosts.st_mode & 0o7777) == (0, 0o755)
    assert run("dpkg", "--verify", "sniproxy") == ""


def test_an_upgrade_loses_no_connection(backend_at: Callable[..., Backend]) -> None:
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    with Load(BLOG) as load:
        eventually("the start is over", lambda: shown("SubState") == "running")
        before = main_pid(), version(), EXECUTABLE.stat().st_ino, listening_inodes()
        run("dpkg", "--install", HERE / "new.deb")
        load.more()
        after = main_pid(), version(), EXECUTABLE.stat().st_ino, listening_inodes()
    assert all(old != new for old, new in zip(before[:3], after[:3], strict=True))
    assert before[3] == after[3] != []


def test_an_upgrade_starts_nothing_that_was_stopped() -> None:
    run("systemctl", "stop", "sniproxy.socket", "sniproxy.service")
    run("dpkg", "--install", HERE / "old.deb")
    states = [shown("ActiveState", unit) for unit in ("sniproxy.socket", "sniproxy.service")]
    assert states == ["inactive", "inactive"]


def test_an_upgrade_keeps_what_was_asked_for(backend_at: Callable[..., Backend]) -> None:
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    run("dpkg", "--install", HERE / "new.deb")
    assert run("systemctl", "is-enabled", "sniproxy.socket").strip() == "enabled"
    assert ask(BLOG) == "the blog"


def test_needrestart_leaves_it_alone(backend_at: Callable[..., Backend]) -> None:
    """Its executable has been deleted, which is how it is to be."""
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    assert ask(BLOG) == "the blog"
    eventually("the start is over", lambda: shown("SubState") == "running")
    pid = main_pid()
    assert "sniproxy" not in run("needrestart", "-b", "-r", "a")
    drop_in = pathlib.Path("/etc/needrestart/conf.d/sniproxy.conf")
    drop_in.rename(drop_in.with_suffix(".off"))
    try:
        assert "NEEDRESTART-SVC: sniproxy.service" in run("needrestart", "-b", "-r", "l")
    finally:
        drop_in.with_suffix(".off").rename(drop_in)
    assert main_pid() == pid
    example = pathlib.Path("/usr/share/doc/sniproxy/examples/needrestart.conf")
    assert example.read_text() == drop_in.read_text()
