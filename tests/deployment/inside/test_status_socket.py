"""The status socket as a unit: nobody has it unless asked for, and it goes with the port."""

import pathlib
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest
from manual import block
from support import (
    BLOG,
    DROP_INS,
    TIMEOUT,
    Backend,
    Client,
    ask,
    eventually,
    fails,
    follow,
    journal,
    main_pid,
    make_host,
    run,
    shown,
)

STATUS = pathlib.Path("/run/sniproxy/status")
UNIT = "sniproxy-status.socket"

CONNECT = f"import socket; socket.socket(socket.AF_UNIX).connect({str(STATUS)!r})"


@pytest.fixture
def blog(proxy: None, backend_at: Callable[..., Backend]) -> None:
    backend_at(make_host(BLOG) / "tls-socket", "the blog")


@pytest.fixture(autouse=True)
def unit(blog: None) -> Iterator[None]:
    yield
    run("systemctl", "disable", "--now", UNIT)
    shutil.rmtree(DROP_INS / f"{UNIT}.d", ignore_errors=True)


def latest_start() -> str:
    return [
        line for line in journal("--unit=sniproxy.service").splitlines() if " event=start " in line
    ][-1]


def has_it() -> bool:
    """Say whether a proxy that serves has the socket of the path."""
    return f" status=unix:{STATUS} " in latest_start() and shown("ActiveState", UNIT) == "active"


def test_asking_for_it_cuts_nobody() -> None:
    assert shown("UnitFileState", UNIT) == "disabled"
    with Client(BLOG) as client:
        assert client.ask() == "the blog"
        assert not STATUS.exists()
        assert "status=" not in latest_start()
        # As one would do it, and what the manual says of it.
        fails("systemctl", "enable", "--now", UNIT)
        assert "already active, refusing" in journal(f"--unit={UNIT}")
        assert client.ask() == "the blog"
        assert not STATUS.exists()
        pid = main_pid()
        follow(block("how-to/monitoring.md", "The status socket"))
        assert main_pid() != pid
        assert has_it()
        file = STATUS.stat()
        assert (file.st_mode & 0o7777, file.st_uid) == (0o660, 0)
        assert str(file.st_gid) == run("getent", "group", "adm").split(":")[2]
        assert STATUS.parent.stat().st_mode & 0o7777 == 0o755
        for _ in range(2):
            run("systemctl", "restart", "sniproxy.service")
            assert has_it()
            assert STATUS.stat().st_ino == file.st_ino
            assert client.ask() == "the blog"
        run("systemctl", "disable", "--now", UNIT)
        assert not STATUS.exists()
        run("systemctl", "restart", "sniproxy.service")
        assert "status=" not in latest_start()
        assert client.ask() == "the blog"


def test_only_the_group_may_look() -> None:
    follow(block("how-to/monitoring.md", "The status socket"))
    assert "PermissionError" in fails("python3", "-c", CONNECT, user="alice")
    rights = ["setpriv", "--reuid=alice", "--regid=alice", "--groups=adm"]
    subprocess.run([*rights, "python3", "-c", CONNECT], check=True)
    # A host that leads there gets nobody in: not even where the jail would not end first.
    assert "PermissionError" in fails("python3", "-c", CONNECT, user="sniproxy")


def test_it_comes_and_goes_with_the_port() -> None:
    follow(block("how-to/monitoring.md", "The status socket"))
    run("systemctl", "stop", "sniproxy.socket", "sniproxy.service")
    assert (shown("ActiveState", UNIT), STATUS.exists()) == ("inactive", False)
    run("systemctl", "start", "sniproxy.socket")
    assert ask(BLOG) == "the blog"
    eventually("it is ready", lambda: shown("ActiveState") == "active")
    assert has_it()
    # Who looks first starts the proxy, as a client does.
    run("systemctl", "stop", "sniproxy.service")
    with socket.socket(socket.AF_UNIX) as looking:
        looking.settimeout(TIMEOUT)
        looking.connect(str(STATUS))
        eventually("it is started", lambda: shown("ActiveState") == "active")
    assert has_it()
    assert ask(BLOG) == "the blog"


def test_by_tcp_besides() -> None:
    with Client(BLOG) as client:
        assert client.ask() == "the blog"
        follow(block("how-to/monitoring.md", "Prometheus", 0))
        assert f" status=unix:{STATUS},127.0.0.1:9799 " in latest_start()
        socket.create_connection(("127.0.0.1", 9799), TIMEOUT).close()
        assert client.ask() == "the blog"
    # The service has no network of its own all the same.
    interfaces = run("nsenter", "--net", f"--target={main_pid()}", "cat", "/proc/net/dev")
    assert [line.split(":")[0].strip() for line in interfaces.splitlines()[2:]] == ["lo"]
    assert "9799" not in run("nsenter", "--net", f"--target={main_pid()}", "ss", "-ltn")
