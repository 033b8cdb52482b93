"""The units as they are installed, in a real systemd."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
from collections.abc import Callable

import pytest
from support import (
    BLOG,
    EXECUTABLE,
    HOSTS,
    SHOP,
    TIMEOUT,
    Backend,
    Client,
    Load,
    ask,
    eventually,
    fails,
    journal,
    listening_inodes,
    main_pid,
    make_host,
    run,
    shown,
)

pytestmark = pytest.mark.usefixtures("proxy")
Start = Callable[..., Backend]


@pytest.fixture
def blog(proxy: None, backend_at: Start) -> pathlib.Path:
    directory = make_host(BLOG)
    backend_at(directory / "tls-socket", "the blog")
    return directory


def test_tls_passes_through_the_jail(blog: pathlib.Path, hosts: pathlib.Path) -> None:
    assert ask(BLOG) == "the blog"
    root = f"/proc/{main_pid()}/root/"
    assert os.path.samestat(os.stat(root), os.stat(hosts))
    assert os.path.samestat(os.stat(f"/proc/{main_pid()}/cwd/"), os.stat(hosts))


def test_ipv6_and_ipv4(blog: pathlib.Path) -> None:
    assert (ask(BLOG, "127.0.0.1"), ask(BLOG, "::1")) == ("the blog", "the blog")


def test_the_executable_is_gone_after_the_start(blog: pathlib.Path, hosts: pathlib.Path) -> None:
    assert ask(BLOG) == "the blog"
    eventually("the start is over", lambda: shown("SubState") == "running")
    assert not (hosts / "sniproxy").exists()
    assert os.readlink(f"/proc/{main_pid()}/exe") == "/sniproxy (deleted)"


def test_nothing_but_the_hosts_is_in_reach(blog: pathlib.Path) -> None:
    assert ask(BLOG) == "the blog"
    pid = main_pid()
    status = dict(
        line.split(":\t") for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == [run("id", "-u", "sniproxy").strip()] * 4
    interfaces = run("nsenter", "--net", f"--target={pid}", "cat", "/proc/net/dev")
    assert re.findall(r"^\s*(\w+):", interfaces, re.MULTILINE) == ["lo"]
    rights = pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()[0].split()[5]
    assert "ro" in rights.split(",")


def test_a_worker_that_died_is_replaced_in_the_jail(blog: pathlib.Path) -> None:
    """There is one for each CPU, also where /sys and most of /proc are not to be seen."""
    assert ask(BLOG) == "the blog"
    # The first may serve before the others are there.
    eventually("all are started", lambda: shown("ActiveState") == "active")

    def workers() -> set[int]:
        children = run("pgrep", "--parent", str(main_pid()), check=False)
        return {int(pid) for pid in children.split()}

    before = workers()
    assert len(before) == len(os.sched_getaffinity(0)) or not before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually("as many others", lambda: len(workers() - before) == len(before))
    assert ask(BLOG) == "the blog"


def test_the_exposure_is_low() -> None:
    assessment = run("systemd-analyze", "security", "--no-pager", "sniproxy.service")
    level = re.search(r"Overall exposure level for sniproxy.service: (\S+)", assessment)
    assert level is not None, assessment
    assert float(level[1]) <= 0.3, assessment


def test_systemd_finds_no_fault_in_the_units() -> None:
    units = ("sniproxy.socket", "sniproxy.service", "sniproxy-stale.service")
    for unit in (*units, "sniproxy-status.socket"):
        complaints = run("systemd-analyze", "verify", "--man=no", unit, check=False).splitlines()
        # The executable is there only while the service starts.
        assert [line for line in complaints if "/sniproxy is not executable" not in line] == []


def test_a_restart_loses_no_connection(blog: pathlib.Path) -> None:
    with Load(BLOG) as load:
        before = main_pid(), listening_inodes()
        for _ in range(3):
            run("systemctl", "restart", "sniproxy.service")
            load.more()
        after = main_pid(), listening_inodes()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_stop_ends_open_connections_in_time(blog: pathlib.Path) -> None:
    """A stop that took longer than TimeoutStopSec= would have the result "timeout"."""
    clients = [Client(BLOG) for _ in range(4)]
    assert [client.ask() for client in clients] == ["the blog"] * 4
    run("systemctl", "stop", "sniproxy.socket", "sniproxy.service")
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert shown("ExecMainStatus") == "0"
    for client in clients:
        assert client.has_ended()
        client.close()


def test_a_stop_waits_for_the_last_connection(blog: pathlib.Path) -> None:
    with Client(BLOG) as client:
        assert client.ask() == "the blog"
        pid = main_pid()
        run("systemctl", "stop", "--no-block", "sniproxy.socket", "sniproxy.service")
        eventually("the stop has begun", lambda: shown("ActiveState") == "deactivating")
        assert client.ask() == "the blog"
    eventually("the process is gone", lambda: not pathlib.Path(f"/proc/{pid}").exists())
    eventually("the stop is over", lambda: shown("ActiveState") == "inactive")
    assert shown("Result") == "success"


def test_the_log_has_its_priorities(blog: pathlib.Path) -> None:
    directory = make_host(SHOP)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(str(directory / "tls-socket"))
        (directory / "tls-socket").chmod(0o666)
        with pytest.raises(OSError, match=r"INTERNAL_ERROR|internal error"):
            ask(SHOP)
    invocation = shown("InvocationID")
    lines = journal("--output=json", f"_SYSTEMD_INVOCATION_ID={invocation}").splitlines()
    entries = [json.loads(line) for line in lines]
    priority_of = {
        entry["MESSAGE"].split()[0]: entry["PRIORITY"]
        for entry in entries
        if entry["SYSLOG_IDENTIFIER"] == "sniproxy"
    }
    assert priority_of["event=start"] == "6"
    warnings = [entry["MESSAGE"] for entry in entries if entry["PRIORITY"] == "4"]
    assert len(warnings) == 1
    assert SHOP in warnings[0]


def test_bad_starts_do_not_close_the_port(blog: pathlib.Path) -> None:
    """Six in a row, while a client waits; it is served as soon as a start succeeds."""
    kept = EXECUTABLE.with_name("kept")
    shutil.copy2(EXECUTABLE, kept)
    try:
        EXECUTABLE.write_text("no program\n")
        waiting = socket.create_connection(("127.0.0.1", 443))
        waiting.sendall(b"no hello, just to be answered\n")
        eventually("six restarts", lambda: int(shown("NRestarts")) >= 6)
        assert shown("ActiveState", "sniproxy.socket") == "active"
    finally:
        kept.replace(EXECUTABLE)
    with waiting:
        waiting.settimeout(TIMEOUT)
        assert waiting.recv(100)[:1] == b"\x15"
    assert ask(BLOG) == "the blog"


def test_links_are_swapped_without_an_error(backend_at: Start, hosts: pathlib.Path) -> None:
    directory = make_host(SHOP)
    for title in ("one", "two"):
        backend_at(directory / title, title)
    link, fresh = directory / "tls-socket", directory / "fresh"
    link.symlink_to("one")
    (hosts / BLOG).symlink_to(SHOP)
    with Load(SHOP, BLOG) as load:
        for _ in range(20):
            for title in ("two", "one"):
                fresh.symlink_to(title)
                fresh.rename(link)
                load.more(5)
    assert load.titles == {"one", "two"}


def test_links_out_of_the_jail_lead_nowhere(backend_at: Start, tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o777)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    backend_at(tmp_path / "tls-socket", "outside")
    (make_host(BLOG) / "tls-socket").symlink_to(tmp_path / "tls-socket")
    with pytest.raises(OSError, match=r"UNRECOGNIZED_NAME|unrecognized name"):
        ask(BLOG)
    # The check knows the root directory from the unit.
    assert "no link leads out of it" in fails("sniproxy-check", "--user", "sniproxy", HOSTS)


def test_the_tools_see_the_hosts(blog: pathlib.Path, hosts: pathlib.Path) -> None:
    assert "ok" in run("sniproxy-check", "--user", "sniproxy", hosts)
    (hosts / "Wrong.promise.example").mkdir()
    assert "rename it to wrong.promise.example" in fails("sniproxy-check", hosts)
    assert run("sniproxy-hostname", "Blog.Promise.Example.").strip() == BLOG
