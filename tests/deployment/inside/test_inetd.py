"""The documented lines in a real inetd."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from manual import block
from support import (
    BLOG,
    DROP_INS,
    EXAMPLES,
    Backend,
    Client,
    Load,
    ask,
    eventually,
    follow,
    journal,
    listening_inodes,
    make_host,
    run,
)

Start = Callable[..., Backend]


@pytest.fixture
def inetd(hosts: pathlib.Path, backend_at: Start) -> Iterator[subprocess.Popen[bytes]]:
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    process = subprocess.Popen(["/usr/sbin/inetd", "-i", EXAMPLES / "inetd.conf"])
    eventually("inetd listens", lambda: listens("127.0.0.1") and listens("::1"))
    yield process
    running = proxies(process)
    process.terminate()
    process.wait()
    for pid in running:
        os.kill(pid, signal.SIGINT)
    eventually(
        "the proxies have ended", lambda: not run("pgrep", "--exact", "sniproxy", check=False)
    )


def listens(address: str) -> bool:
    try:
        Client(BLOG, address).close()
    except ConnectionRefusedError:
        return False
    return True


def proxies(inetd: subprocess.Popen[bytes]) -> list[int]:
    """Name the processes that inetd has started, which may have workers of their own."""
    return [int(pid) for pid in run("pgrep", "--parent", str(inetd.pid), check=False).split()]


def test_it_serves_ipv4_and_ipv6(inetd: subprocess.Popen[bytes]) -> None:
    assert (ask(BLOG, "127.0.0.1"), ask(BLOG, "::1")) == ("the blog", "the blog")
    owners = [run("stat", "--format=%U", f"/proc/{pid}").strip() for pid in proxies(inetd)]
    assert owners == ["sniproxy", "sniproxy"]


def test_inetd_listens_again_when_the_proxy_has_ended(inetd: subprocess.Popen[bytes]) -> None:
    with Load(BLOG) as load:
        for _ in range(3):
            before = {*proxies(inetd)}
            for pid in before:
                os.kill(pid, signal.SIGHUP)
            eventually("they have ended", lambda before=before: not before & {*proxies(inetd)})
            load.more()


def test_the_log_goes_to_syslog(inetd: subprocess.Popen[bytes]) -> None:
    """Standard error is the listening socket there."""
    assert ask(BLOG) == "the blog"
    pids = proxies(inetd)
    logged = journal("--identifier=sniproxy", "--priority=6..6", *(f"_PID={pid}" for pid in pids))
    assert "event=start" in logged


@pytest.fixture
def unit(hosts: pathlib.Path, backend_at: Start) -> Iterator[None]:
    """Run inetd as Debian's unit does, with the documented lines."""
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    mask, configuration = DROP_INS / "inetd.service", pathlib.Path("/etc/inetd.conf")
    before = configuration.read_text()
    mask.unlink()
    configuration.write_text((EXAMPLES / "inetd.conf").read_text())
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "inetd")
    eventually("inetd listens", lambda: listens("127.0.0.1") and listens("::1"))
    yield
    run("systemctl", "stop", "inetd")
    run("pkill", "-INT", "--exact", "sniproxy", check=False)
    eventually("nothing listens", lambda: not listening_inodes())
    configuration.write_text(before)
    mask.symlink_to("/dev/null")
    run("systemctl", "daemon-reload")


def test_inetd_itself_is_restarted_as_the_manual_says(unit: None) -> None:
    with Client(BLOG) as client:
        assert client.ask() == "the blog"
    before = listening_inodes()
    follow(block("how-to/restarts.md", "Restarts and upgrades"))
    eventually("inetd listens", lambda: listens("127.0.0.1") and listens("::1"))
    assert set(before).isdisjoint(listening_inodes())
    assert (ask(BLOG, "127.0.0.1"), ask(BLOG, "::1")) == ("the blog", "the blog")
