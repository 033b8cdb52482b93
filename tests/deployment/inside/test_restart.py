"""Restarts and upgrades: what is open goes on in the next process, or it is said why not.

RESTARTS and CONNECTIONS make the tests of the same names longer, for figures.
"""

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from support import (
    BLOG,
    DROP_INS,
    EXECUTABLE,
    HERE,
    TIMEOUT,
    Backend,
    Client,
    Load,
    ask,
    eventually,
    journal,
    main_pid,
    make_host,
    run,
    shown,
)
from traffic import ADDRESS, FEW, Traffic

pytestmark = pytest.mark.usefixtures("proxy")

RESTARTS = int(os.environ.get("RESTARTS", "3"))
CONNECTIONS = int(os.environ.get("CONNECTIONS", "500"))
FIGURES = HERE / "figures"

DPKG = "dpkg", "--force-unsafe-io"

HELD, HOLDING = pathlib.Path("/run/held"), pathlib.Path("/run/holding")
"""While the first is there, a start does not get to the program; the second names the process that
sees to that."""

_PTRACE_ATTACH = 16

ORIGINAL = {
    "sniproxy.socket": """\
[Socket]
ListenStream=443
""",
    "sniproxy.service": """\
[Unit]
Requires=sniproxy.socket

[Service]
Type=exec
StandardInput=socket
KillSignal=SIGHUP
TimeoutStopSec=10s

RootDirectoryStartOnly=yes
RootDirectory=/srv/sniproxy
ExecStartPre=+cp /usr/bin/sniproxy /srv/sniproxy
ExecStart=/sniproxy
ExecStartPost=-+rm /srv/sniproxy/sniproxy

User=sniproxy
ProtectSystem=yes
MountAPIVFS=no
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
MemoryDenyWriteExecute=yes
SystemCallFilter=@system-service
SystemCallArchitectures=native
""",
}
"""The units that the program after which this one is made documents, with the path of ExecStart=
made absolute, as systemd wants it. People have them."""


def log_of(action: Callable[[], object]) -> str:
    """Act; give what the log has of it."""
    last = journal("-u", "sniproxy", "-n", "1", "--show-cursor").rpartition("cursor: ")[2]
    action()
    return journal("-u", "sniproxy", f"--after-cursor={last.strip()}")


def adopted(log: str) -> list[tuple[int, int]]:
    """Give how many connections each start has adopted, and how many were lost."""
    return [
        (int(found[1]), int(found[2]))
        for found in re.finditer(r"event=start .* adopted=(\d+) lost=(\d+)", log)
    ]


def restart(*names: str) -> None:
    run("systemctl", "restart", *(names or ("sniproxy.service",)))


def goes_on(traffic: Traffic, *actions: Callable[[], object], at_once: bool = True) -> None:
    """See that actions restart the program, and that all that is open goes on; where they do it
    ``at_once``, also who has ten seconds only."""
    for action in actions:
        before = main_pid()

        def act(action: Callable[[], object] = action, before: int = before) -> None:
            traffic.across(action) if at_once else action()
            eventually("another process serves", lambda: main_pid() not in {0, before})
            ready()

        log = log_of(act)
        counts = adopted(log)
        assert counts, log
        for count, lost in counts:
            assert count >= traffic.size + 2 * at_once, log
            assert lost == 0, log
        assert "not_adopted" not in log


def drop_in(name: str, *lines: str) -> None:
    folder = DROP_INS / "sniproxy.service.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.conf").write_text("\n".join(["[Service]", *lines, ""]))
    run("systemctl", "daemon-reload")


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Restart, and leave with the connections stored; at the end they go on."""
    wait = f"echo $$$$ >{HOLDING}; while [ -e {HELD} ]; do sleep 0.02; done"
    drop_in("held", f"ExecStartPre=+sh -c '{wait}'")
    HELD.touch()
    HOLDING.write_text("")
    try:
        run("systemctl", "restart", "--no-block", "sniproxy.service")
        # It is not the first command of a start.
        eventually("the next start", lambda: HOLDING.read_text().strip() == shown("ControlPID"))
        yield
    finally:
        HELD.unlink()


def stored() -> int:
    return int(shown("NFileDescriptorStore"))


def ready() -> None:
    eventually("it is ready", lambda: shown("ActiveState") == "active")


def workers() -> list[int]:
    return [int(pid) for pid in run("pgrep", "-P", str(main_pid()), check=False).split()]


def test_every_restart_hands_everything_over() -> None:
    kinds = ["restart", "try-restart", "reload-or-restart"]
    with Traffic() as traffic:
        goes_on(
            traffic,
            *(lambda kind=kind: run("systemctl", kind, "sniproxy.service") for kind in kinds),
            restart_the_socket,
        )
        assert stored() == 0


def test_many_restarts_of_the_socket() -> None:
    """Whatever systemd still does for the stop, the address is free; and none is one too many."""
    with Traffic() as traffic:
        for _ in range(20):
            goes_on(traffic, restart_the_socket, at_once=False)


def restart_the_socket() -> None:
    restart("sniproxy.socket")


def test_many_restarts_under_load(proxy: None, backend_at: Callable[..., Backend]) -> None:
    """With as many new clients as there may be, none of which fails."""
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    counts = {kind: count * max(1, RESTARTS // 3) for kind, count in FEW.items()}
    gaps, news = [], []
    with Traffic(counts) as traffic, Load(BLOG) as load:
        for _ in range(RESTARTS):
            since, load.longest = time.monotonic(), 0
            goes_on(traffic, restart)
            load.more(5)
            gaps.append(traffic.longest_wait(since))
            news.append(load.longest)
    told("under load", gaps, traffic)
    told("under load, new clients", news, traffic)


def told(what: str, gaps: list[float], traffic: Traffic) -> None:
    """Note figures."""
    with FIGURES.open("a") as file:
        ordered = [round(1000 * gap) for gap in sorted(gaps)]
        print(
            f"{what}: {traffic.size} connections, {len(gaps)} restarts, {len(traffic.lost)} lost, "
            f"{traffic.transferred} bytes; longest wait at each: median "
            f"{statistics.median(ordered)} ms, {ordered}",
            file=file,
        )


def test_the_service_manager_keeps_few_descriptors(proxy: None) -> None:
    for count in (20, CONNECTIONS):
        gaps = []
        with Traffic({"ping": 4, "idle": count - 4}) as traffic:
            for _ in range(RESTARTS):
                since = time.monotonic()
                restart()
                traffic.ping_after(time.monotonic())
                gaps.append(traffic.longest_wait(since))
            with held():
                parcels = stored()
                assert 1 <= parcels <= 2 + count // 2000
            ready()
        told(f"gap, {parcels} descriptors stored", gaps, traffic)


def test_an_upgrade_and_a_downgrade_hand_over() -> None:
    names = ("old.deb", "new.deb", "new.deb", "old.deb")
    installs = (lambda name=name: run(*DPKG, "--install", HERE / name) for name in names)
    with Traffic() as traffic:
        # What comes before the restart can take longer than a client may be in line.
        goes_on(traffic, *installs, at_once=False)


def test_an_upgrade_of_a_program_that_does_not_hand_over_lets_it_finish() -> None:
    """The new unit's signal would kill it, with all its connections."""
    drop_in(
        "older",
        *("Type=exec", "RootDirectory=", "ProtectControlGroups=no", "ExecStart="),
        f"ExecStart=python3 {HERE}/older.py",
    )
    run("systemctl", "start", "sniproxy.service")
    log = log_of(lambda: run(*DPKG, "--install", HERE / "new.deb"))
    eventually("it has ended", lambda: shown("ActiveState") == "inactive")
    assert "older: asked to finish" in journal("-u", "sniproxy", "-n", "20"), log
    assert shown("Result") == "success"


def test_other_numbers_of_workers() -> None:
    with Traffic() as traffic:
        for count in (1, 1, 4, 2):
            drop_in("workers", f"Environment=SNIPROXY_WORKERS={count}")
            goes_on(traffic, restart)
            assert len(workers()) == (count if count > 1 else 0)


def test_the_manager_is_loaded_and_run_anew_meanwhile() -> None:
    def action() -> None:
        with held():
            assert stored() > 0
            run("systemctl", "daemon-reload")
            run("systemctl", "daemon-reexec")
            assert stored() > 0
        ready()

    with Traffic() as traffic:
        run("systemctl", "daemon-reexec")
        goes_on(traffic, action)


def test_a_start_that_fails_and_works_later() -> None:
    def action() -> None:
        kept = EXECUTABLE.with_name("kept")
        EXECUTABLE.rename(kept)
        before = int(shown("NRestarts"))
        try:
            run("systemctl", "restart", "sniproxy.service", check=False)
            eventually("another try", lambda: int(shown("NRestarts")) > before + 1)
        finally:
            kept.rename(EXECUTABLE)
        ready()

    with Traffic() as traffic:
        goes_on(traffic, action)


def test_a_signal_without_a_job_restarts_it() -> None:
    def action() -> None:
        pid = main_pid()
        os.kill(pid, signal.SIGUSR2)
        eventually("another process", lambda: main_pid() not in {0, pid})
        ready()

    with Traffic() as traffic:
        goes_on(traffic, action)


def test_two_restarts_at_once() -> None:
    def action() -> None:
        both = [subprocess.Popen(["systemctl", "restart", "sniproxy.service"]) for _ in range(2)]
        for one in both:
            one.wait(TIMEOUT)
        restart()

    with Traffic() as traffic:
        goes_on(traffic, action)


def test_where_nothing_is_kept_a_restart_drains() -> None:
    """The store is missing, or too small for the parcels of two workers."""
    for most in (0, 1):
        drop_in("store", f"FileDescriptorStoreMax={most}", "Environment=SNIPROXY_WORKERS=2")
        restart()
        with Traffic() as traffic:

            def action(traffic: Traffic = traffic) -> None:
                run("systemctl", "restart", "--no-block", "sniproxy.service")
                eventually("it stops", lambda: shown("SubState") == "stop-sigterm")
                traffic.finish()
                ready()

            log = log_of(action)
        assert log.count("event=not_handed_over") == 1, log
        assert "FileDescriptorStoreMax=" in log
        assert adopted(log) == []


def test_a_farewell_goes_on(proxy: None) -> None:
    """A client that is refused and goes on sending: a reset would take from it what was said."""
    run("systemctl", "start", "sniproxy.service")
    with socket.create_connection(ADDRESS, TIMEOUT) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert client.recv(100)[:1] == b"\x15"
        with held():
            client.sendall(b"Host: a.example\r\n\r\n")
        ready()
        assert client.recv(100) == b""


def test_a_stop_in_the_middle_of_a_restart() -> None:
    """What is stored ends at once, and nothing is left behind."""
    with Traffic({"idle": 4}) as traffic:
        with held():
            assert stored() > 0
            run("systemctl", "stop", "sniproxy.socket", "sniproxy.service")
        assert shown("ActiveState") in {"inactive", "failed"}
        eventually("nothing is stored", lambda: stored() == 0)
        assert len(traffic.finish()) >= 4
        traffic.lost.clear()
    run("systemctl", "start", "sniproxy.socket", "sniproxy.service")
    with Traffic({"idle": 4}) as traffic:
        pass


def test_a_worker_that_hangs_takes_only_its_own_along() -> None:
    hang_one_worker(lambda hanging: None)


def test_a_supervisor_killed_in_the_middle_has_stored_what_it_had() -> None:
    def kill(hanging: int) -> None:
        eventually("the other is done", lambda: workers() == [hanging])
        assert stored() > 0
        os.kill(main_pid(), signal.SIGKILL)
        os.kill(hanging, signal.SIGKILL)

    hang_one_worker(kill)


def hang_one_worker(action: Callable[[int], object]) -> None:
    """Restart with one of two workers hanging, and act meanwhile: that costs the connections of
    this one, and no other."""
    drop_in("workers", "Environment=SNIPROXY_WORKERS=2")
    restart()
    with Traffic({"ping": 4, "idle": 60}) as traffic:
        first = workers()[0]
        own = clients_of(first)
        assert 0 < own < traffic.size
        hang(first)

        def act() -> None:
            run("systemctl", "restart", "--no-block", "sniproxy.service")
            action(first)
            eventually("the hanging one is gone", lambda: os.waitpid(first, os.WNOHANG)[0])
            ready()

        log = log_of(act)
        assert adopted(log) == [(traffic.size - own, 0)], log
        lost = traffic.finish()
        connections = {tuple(re.findall(r"(\w+) \w+ (\d+):", one)) for one in lost}
        assert len(connections) == own, lost
        traffic.lost.clear()


def hang(process: int) -> None:
    """Stop a process so that no SIGCONT continues it, as systemd sends one with its signals."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(_PTRACE_ATTACH, process, None, None) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(process, 0)


def clients_of(worker: int) -> int:
    """Count the clients of a worker."""
    tables = pathlib.Path(f"/proc/{worker}/fd")
    own = {os.readlink(one) for one in tables.iterdir()}
    rows = [line.split() for line in pathlib.Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in own for row in rows if row[3] == "01")


def test_a_next_process_killed_in_the_middle() -> None:
    """Before it has taken anything: the one after it takes all."""

    def action() -> None:
        with held():
            control = int(shown("ControlPID"))
            os.kill(control, signal.SIGKILL)
            eventually("another try", lambda: int(shown("ControlPID")) not in {0, control})
        ready()

    with Traffic() as traffic:
        goes_on(traffic, action)


@pytest.fixture
def original() -> Iterator[None]:
    """The original's units in place of ours."""
    for name, text in ORIGINAL.items():
        (DROP_INS / name).write_text(text)
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "sniproxy.socket")
    yield
    run("systemctl", "stop", "sniproxy.socket", "sniproxy.service")
    for name in ORIGINAL:
        (DROP_INS / name).unlink()
    run("systemctl", "daemon-reload")


def test_the_original_s_units_go_on_working(
    proxy: None, original: None, backend_at: Callable[..., Backend]
) -> None:
    """As they have: new clients wait while old connections end."""
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    with Client(BLOG) as client:
        assert client.ask() == "the blog"
        assert (shown("Type"), shown("RestartKillSignal")) == ("exec", str(int(signal.SIGHUP)))
        pid = main_pid()
        run("systemctl", "restart", "--no-block", "sniproxy.service")
        eventually("it stops", lambda: shown("SubState") == "stop-sigterm")
        assert client.ask() == "the blog"
    ready()
    assert main_pid() != pid
    with Load(BLOG):
        restart()
    assert ask(BLOG) == "the blog"
    assert not (pathlib.Path("/srv/sniproxy") / "sniproxy").exists()
    run("systemctl", "stop", "sniproxy.socket", "sniproxy.service")
    assert (shown("Result"), shown("ExecMainStatus")) == ("success", "0")
