"""The documented service directories under a real s6-svscan."""

import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest
from support import (
    BLOG,
    EXAMPLES,
    TIMEOUT,
    Backend,
    Client,
    ask,
    eventually,
    listening_inodes,
    make_host,
    run,
)

BINDER = """\
#!/usr/bin/python3
# Stands in for s6-networking's binders, which Debian has not: ADDRESS PORT COMMAND...
import os, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listening = socket.socket(family)
if family == socket.AF_INET6:
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind((sys.argv[1], int(sys.argv[2])))
listening.listen(4096)
listening.setblocking(False)
os.dup2(listening.fileno(), 0)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture
def supervised(
    hosts: pathlib.Path, backend_at: Callable[..., Backend], tmp_path: pathlib.Path
) -> Iterator[Callable[..., list[pathlib.Path]]]:
    """Run s6-svscan on copies of the service directories that are named."""
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    binders = tmp_path / "bin"
    binders.mkdir()
    for version in "46":
        (binders / f"s6-tcpserver{version}-socketbinder").write_text(BINDER)
        (binders / f"s6-tcpserver{version}-socketbinder").chmod(0o755)
    scan = tmp_path / "scan"
    scan.mkdir()
    running: list[subprocess.Popen[bytes]] = []

    def start(*names: str) -> list[pathlib.Path]:
        for name in names:
            shutil.copytree(EXAMPLES / "s6" / name, scan / name)
        path = f"{binders}:{os.environ['PATH']}"
        running.append(subprocess.Popen(["s6-svscan", scan], env=os.environ | {"PATH": path}))
        eventually("all listen", lambda: len(listening_inodes()) == len(names))
        services = [scan / name for name in names]
        # s6-supervise notes a service as up after it has started it.
        run("s6-svwait", "-u", "-t", str(1000 * TIMEOUT), *services)
        return services

    yield start
    run("s6-svscanctl", "-t", scan)
    for process in running:
        process.wait()
    eventually("nothing listens", lambda: not listening_inodes())


def test_a_service_for_each_family(supervised: Callable[..., list[pathlib.Path]]) -> None:
    supervised("sniproxy-ipv4", "sniproxy-ipv6")
    assert (ask(BLOG, "127.0.0.1"), ask(BLOG, "::1")) == ("the blog", "the blog")


def test_one_service_with_our_own_binder(supervised: Callable[..., list[pathlib.Path]]) -> None:
    (service,) = supervised("sniproxy-listen")
    assert (ask(BLOG, "127.0.0.1"), ask(BLOG, "::1")) == ("the blog", "the blog")
    pid = run("s6-svstat", "-o", "pid", service).strip()
    assert run("stat", "--format=%U", f"/proc/{pid}").strip() == "sniproxy"


def test_down_is_a_graceful_stop(supervised: Callable[..., list[pathlib.Path]]) -> None:
    (service,) = supervised("sniproxy-listen")
    with Client(BLOG) as client:
        assert client.ask() == "the blog"
        run("s6-svc", "-d", service)
        eventually("it listens no more", lambda: not listening_inodes())
        assert client.ask() == "the blog"
    run("s6-svwait", "-d", "-t", str(1000 * TIMEOUT), service)
    assert run("s6-svstat", "-o", "exitcode,signal", service).split() == ["0", "NA"]
