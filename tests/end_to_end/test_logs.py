"""Where the log goes, and what is in it."""

import contextlib
import ctypes
import os
import pathlib
import re
import resource
import signal
import socket
from collections.abc import Callable

import pytest

from sniproxy.parser.proxy_header import version_2
from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Proxy,
    read_all,
    read_exactly,
    reset,
    wait_for,
    wait_until,
)
from tests.hello import hello

HELLO = hello("a.example")
Start = Callable[..., Proxy]
Make = Callable[..., Backend]
CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18

one_worker = pytest.mark.parametrize("workers", ["1"], indirect=True)


def alert(number: int) -> bytes:
    return bytes([0x15, 3, 3, 0, 2, 2, number])


def relay_one(proxy: Proxy, backend: Backend) -> None:
    with proxy.connect() as client:
        client.sendall(HELLO)
        stream = backend.accept()
        read_exactly(stream, len(HELLO))
        stream.sendall(b"12345")
        stream.close()
        assert read_all(client) == b"12345"


def fault(proxy: Proxy) -> None:
    """Ask for a backend that is broken."""
    directory = proxy.directory("wrong.example")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(str(directory / "tls-socket"))
        assert proxy.ask(hello("wrong.example")) == alert(80)
    (directory / "tls-socket").unlink()


def events(text: str) -> list[str]:
    return re.findall(r"event=(\w+)", text)


def test_error_is_faults_only(start: Start, backend_of: Make) -> None:
    proxy = start(SNIPROXY_LOG="error")
    relay_one(proxy, backend_of(proxy.directory("a.example")))
    fault(proxy)
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for(proxy, "event=totals")
    assert proxy.stop(signal.SIGTERM) == 0
    assert events(proxy.log) == ["backend_fault", "totals"]


def test_info_is_start_stop_faults_and_refusals_as_a_count(start: Start, backend_of: Make) -> None:
    proxy = start(SNIPROXY_LOG="")
    relay_one(proxy, backend_of(proxy.directory("a.example")))
    fault(proxy)
    for _ in range(3):
        assert proxy.ask(hello("no.example")) == alert(112)
    assert proxy.stop(signal.SIGTERM) == 0
    assert events(proxy.log) == ["start", "backend_fault", "stop", "refused", "exit"]
    assert re.search(r"event=refused count=4 (?=.*backend_fault=1)(?=.*no_such_host=3)", proxy.log)
    assert "event=exit accepted=5" in proxy.log


def test_a_broken_backend_is_one_line_and_a_count(start: Start, workers: str) -> None:
    """However often it is asked for; none is lost in the sums, and other hosts have their own."""
    proxy = start(SNIPROXY_LOG="error")
    asked = {"wrong.example": 200, "also.example": 100, "once.example": 1}
    with contextlib.ExitStack() as stack:
        for host in asked:
            wrong = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            wrong.bind(str(proxy.directory(host) / "tls-socket"))
        for host, count in asked.items():
            for _ in range(count):
                assert proxy.ask(hello(host)) == alert(80)
    assert proxy.stop(signal.SIGTERM) == 0
    for host, count in asked.items():
        lines = [line for line in proxy.log.splitlines() if f" host={host} " in line]
        again = [int(one) for one in re.findall(r" count=(\d+)$", "\n".join(lines), re.MULTILINE)]
        # One at once, for each worker that was asked.
        at_once = len(lines) - len(again)
        assert 1 <= at_once <= int(workers)
        assert len(again) <= at_once
        assert at_once + sum(again) == count


def test_totals(start: Start, backend_of: Make) -> None:
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    relay_one(proxy, backend)
    assert proxy.ask(hello("no.example")) == alert(112)
    assert proxy.ask(b"GET") == alert(10)
    with proxy.connect() as client:
        client.sendall(HELLO)
        read_exactly(backend.accept(), len(HELLO))
        backend.accepted[-1].sendall(b"12345")
        assert read_exactly(client, 5) == b"12345"
        proxy.process.send_signal(signal.SIGUSR1)
        wait_for(proxy, "event=totals")
    line = next(line for line in proxy.log.splitlines() if "event=totals" in line)
    # The two that were refused may still be saying farewell.
    assert re.search(
        rf"open=[123] accepted=4 refused=2 bytes_up={2 * len(HELLO)} bytes_down=10 "
        r"(?=.*refused_no_such_host=1)(?=.*refused_not_a_handshake_record=1)",
        line,
    )


@one_worker
def test_each_connection_has_its_line(
    start: Start, backend_of: Make, tmp_path: pathlib.Path
) -> None:
    """Client, host, how it ended, milliseconds to the hello, seconds, bytes each way."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "listen"))
    listening.listen()
    proxy = start(listening, SNIPROXY_LOG="connections")
    relay_one(proxy, backend_of(proxy.directory("a.example")))
    assert proxy.ask(hello("no.example")) == alert(112)
    assert proxy.ask(b"", end=True) == alert(50)
    assert proxy.stop(signal.SIGTERM) == 0
    lines = re.findall(r"event=connection (.*)", proxy.log)
    times = r"seconds=\d+\.\d+"
    size = len(HELLO)
    assert len(lines) == 3
    assert re.fullmatch(
        rf"client=unix local=unix host=a.example end=closed hello_ms=\d+ {times} "
        rf"bytes_up={size} bytes_down=5",
        lines[0],
    )
    assert re.fullmatch(
        rf"client=unix local=unix host=no.example end=refused:no_such_host hello_ms=\d+ {times} "
        "bytes_up=0 bytes_down=0",
        lines[1],
    )
    assert re.fullmatch(
        rf"client=unix local=unix host=none end=refused:no_hello hello_ms=none {times} "
        "bytes_up=0 bytes_down=0",
        lines[2],
    )


@one_worker
def test_what_a_line_says_of_who_and_what(start: Start) -> None:
    """IPv4 as such on a socket for both families; a host and its socket; a name that is none."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("not applicable: this kernel has no IPv6")
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = listening.getsockname()[1]
    proxy = start(listening, SNIPROXY_LOG="connections")
    proxy.directory("empty.example")
    for name in ("no.example", "empty.example", "-\x1b[2J\n event=x", "a" * 300):
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as client:
            client.sendall(hello(name))
            assert read_all(client) == alert(112)
    assert proxy.stop(signal.SIGTERM) == 0
    lines = re.findall(
        r"event=connection client=127\.0\.0\.1:\d+ local=127\.0\.0\.1:\d+ (host=.* end=\S+)",
        proxy.log,
    )
    assert lines == [
        "host=no.example end=refused:no_such_host",
        "host=empty.example end=refused:no_socket",
        r'host="-\u001b[2J\n event=x" end=refused:not_a_host_name',
        f"host={'a' * 254}... end=refused:not_a_host_name",
    ]


def test_the_most_refused_names_are_told(start: Start) -> None:
    """Of all workers together; nothing that is no host name is among them."""
    proxy = start()
    proxy.directory("down.example")
    for name, count in (("a.example", 3), ("down.example", 7), ("c.example", 5), ("d.example", 1)):
        for _ in range(count):
            assert proxy.ask(hello(name)) == alert(112)
    for _ in range(9):
        assert proxy.ask(hello('" names=x.example:99 ')) == alert(112)
    assert proxy.stop(signal.SIGTERM) == 0
    (line,) = [line for line in proxy.log.splitlines() if "event=refused " in line]
    assert " count=25 " in line
    assert line.endswith(" names=down.example:7,c.example:5,a.example:3")


@pytest.mark.parametrize(
    ("wish", "told"), [("prefix", {"127.66.55.0/24", "2001:db8:1::/48"}), ("none", {"none"})]
)
def test_no_line_tells_more_of_a_client_than_is_wanted(
    start: Start, backend_of: Make, wish: str, told: set[str]
) -> None:
    """Whatever becomes of it, and whoever says who it is."""
    variables = {"SNIPROXY_LOG": "connections", "SNIPROXY_LOG_CLIENTS": wish}
    listening = socket.create_server(("127.0.0.1", 0))
    theirs: list[str] = []

    def connect(proxy: Proxy) -> socket.socket:
        place = proxy.listening.getsockname()
        client = socket.create_connection(place, TIMEOUT, ("127.66.55.44", 0))
        theirs.append(f":{client.getsockname()[1]}")
        return client

    proxy = start(listening, **variables)
    backend = backend_of(proxy.directory("a.example"))
    # A queue without a socket is a fault, of which a line warns.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(str(proxy.directory("wrong.example") / "tls-socket"))
        for wire in (b"GET", hello("no.example"), hello("-"), hello("wrong.example")):
            with connect(proxy) as client:
                client.sendall(wire)
                assert read_all(client)[:1] == b"\x15"
    reset(connect(proxy))
    held = connect(proxy)
    held.sendall(HELLO)
    read_exactly(backend.accept(), len(HELLO))
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for(proxy, "event=totals")
    wait_until(lambda: proxy.log.count("event=connection ") == 5)
    proxy.stop(signal.SIGINT)
    held.close()
    balanced = start(SNIPROXY_ACCEPT_PROXY="1", **variables)
    for client_address in ("2001:db8:1:2:3:4:5:6", "::ffff:127.66.55.44"):
        header = version_2((client_address, 40000), ("2001:db8::1", 443), "")
        assert balanced.ask(header + hello("no.example")) == alert(112)
    balanced.ask(b"GET / HTTP/1.1\r\n\r\n")
    balanced.stop(signal.SIGINT)
    lines = [line for line in proxy.log.splitlines() if "event=connection " in line]
    assert len(lines) == 6
    shown = set(re.findall(r" client=(\S+)", proxy.log + balanced.log))
    # Who sends no header is the balancer itself, and no exception.
    assert shown == told | ({"127.0.0.0/24"} if wish == "prefix" else set())
    for log in (proxy.log, balanced.log):
        assert not any(secret in log for secret in ("66.55.44", "2:3:4:5:6", ":40000", *theirs))


@one_worker
def test_a_time_out_is_not_called_a_reset(start: Start, backend_of: Make) -> None:
    """A client that takes nothing, and that the kernel gives up (tcp(7), TCP_USER_TIMEOUT)."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50)
    proxy = start(listening, SNIPROXY_LOG="connections")
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.sendall(HELLO)
        stream = backend.accept()
        with contextlib.suppress(OSError):
            while True:
                stream.sendall(bytes(1 << 16))
        wait_for(proxy, "event=connection")
    assert " end=client_timed_out " in proxy.log


@pytest.mark.parametrize("matches", [True, False])
def test_the_journal_s_stream(start: Start, backend_of: Make, matches: bool) -> None:
    """Priorities and no time where standard error is the stream that JOURNAL_STREAM names."""
    journal, theirs = socket.socketpair()
    status = os.fstat(theirs.fileno())
    inode = status.st_ino + (0 if matches else 1)

    def log_to_journal() -> None:
        os.dup2(theirs.fileno(), 2)

    proxy = start(preexec=log_to_journal, JOURNAL_STREAM=f"{status.st_dev}:{inode}")
    theirs.close()
    relay_one(proxy, backend_of(proxy.directory("a.example")))
    fault(proxy)
    assert proxy.stop(signal.SIGTERM) == 0
    with journal:
        journal.settimeout(TIMEOUT)
        lines = read_all(journal).decode().splitlines()
    assert [events(line)[0] for line in lines] == [
        "start",
        "backend_fault",
        "stop",
        "refused",
        "exit",
    ]
    for line, priority in zip(lines, (6, 4, 6, 6, 6), strict=True):
        if matches:
            assert line.startswith(f"<{priority}>event=")
        else:
            assert re.match(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=", line)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can put a socket in the place of /dev/log")
def test_syslog_where_standard_error_is_the_socket(
    start: Start, backend_of: Make, tmp_path: pathlib.Path
) -> None:
    """inetd's wait: nothing is written to the socket, all of it goes to syslog."""
    devices = tmp_path / "dev"
    devices.mkdir()
    system = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(devices / "log"))
        syslog.settimeout(TIMEOUT)

        def as_inetd_does() -> None:
            for one in (1, 2):
                os.dup2(0, one)
            # A namespace of its own, whose /dev holds nothing but log.
            if (
                system.unshare(CLONE_NEWNS)
                or system.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
                or system.mount(os.fsencode(devices), b"/dev", None, MS_BIND, None)
            ):
                os._exit(77)

        proxy = start(preexec=as_inetd_does, SNIPROXY_LOG="connections")
        backend = backend_of(proxy.directory("a.example"))
        try:
            relay_one(proxy, backend)
        except OSError:
            if proxy.process.poll() == 77:
                pytest.skip("no mount namespaces here")
            raise
        assert proxy.stop(signal.SIGTERM) == 0
        lines = []
        while not lines or "event=exit" not in lines[-1]:
            lines.append(syslog.recv(9999).decode())
    first, *between, last = [events(line)[0] for line in lines]
    assert (first, last) == ("start", "exit")
    # The client may see the end of its connection before the proxy has closed it.
    assert sorted(between) == ["connection", "stop"]
    for line in lines:
        assert re.match(r"<30>sniproxy\[\d+\]: event=", line)
    assert proxy.log == ""


LARGEST = 2048
"""Bytes that a log file may have, a dozen lines."""


def test_a_log_file_that_may_grow_no_further(start: Start) -> None:
    """RLIMIT_FSIZE (LimitFSIZE=, ulimit -f) comes with a signal that would end the process."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))

    proxy = start(preexec=limit, SNIPROXY_LOG="connections")
    for _ in range(50):
        assert proxy.ask(b"GET / HTTP/1.1\r\n\r\n") == alert(10)
    assert proxy.stop(signal.SIGTERM) == 0
    assert len(proxy.log) <= LARGEST
    assert "event=start" in proxy.log
