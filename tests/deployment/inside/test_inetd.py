"""The documented lines in a real inetd."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from support import BLOG, EXAMPLES, Backend, Client, Load, ask, eventually, journal, make_host, run

Start = Callable[..., Backend]


@pytest.fixture
def inetd(hosts: pathlib.Path, backend_at: Start) -> Iterator[subprocess.Popen[bytes]]:
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    process = subprocess.Popen(["/usr/sbin/inetd", "-i", EXAMPLES / "inetd.conf"])
    eventually("inetd listens", lambda: listens("127.0.0.1") and listens("::1"))
    yield process
    process.terminate()
    process.wait()
    for pid in servers():
        os.kill(pid, signal.SIGINT)
    eventually("the servers have ended", lambda: not servers())


def listens(address: str) -> bool:
    try:
        Client(BLOG, address).close()
    except ConnectionRefusedError:
        return False
    return True


def servers() -> list[int]:
    return [int(pid) for pid in run("pgrep", "--exact", "sniproxy", check=False).split()]


def test_it_serves_ipv4_and_ipv6(inetd: subprocess.Popen[bytes]) -> None:
    assert (ask(BLOG, "127.0.0.1"), ask(BLOG, "::1")) == ("the blog", "the blog")
    for pid in servers():
        assert run("stat", "--format=%U", f"/proc/{pid}").strip() == "sniproxy"


def test_inetd_listens_again_when_the_proxy_has_ended(inetd: subprocess.Popen[bytes]) -> None:
    with Load(BLOG) as load:
        for _ in range(3):
            before = servers()
            for pid in before:
                os.kill(pid, signal.SIGHUP)
            eventually("they have ended", lambda before=before: not {*before} & {*servers()})
            load.more()


def test_the_log_goes_to_syslog(inetd: subprocess.Popen[bytes]) -> None:
    """Standard error is the listening socket there."""
    assert ask(BLOG) == "the blog"
    pids = servers()
    logged = journal("--identifier=sniproxy", "--priority=6..6", *(f"_PID={pid}" for pid in pids))
    assert "event=start" in logged
