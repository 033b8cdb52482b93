"""Start, stop, signals, logs, and running out of descriptors."""

import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Proxy,
    children,
    directory_name,
    read_all,
    read_exactly,
    wait_for,
    wait_until,
)
from tests.hello import hello

HELLO = hello("a.example")
Start = Callable[..., Proxy]
Make = Callable[..., Backend]


def run(
    command: list[str], *arguments: str, stdin: object = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*command, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        stdin=stdin,
    )


def test_help_and_version(command: list[str]) -> None:
    assert "usage: sniproxy" in run(command, "--help").stdout
    assert re.fullmatch(r"sniproxy \S+ \((plain|hashed)\)\n", run(command, "--version").stdout)
    wrong = run(command, "--port=1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "unknown argument" in wrong.stderr


def test_without_a_listening_socket(command: list[str]) -> None:
    one, other = socket.socketpair()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    datagram = socket.socket(type=socket.SOCK_DGRAM)
    with one, other, bound, datagram, open(os.devnull) as null:
        for stdin in (null, one, bound, datagram):
            done = run(command, stdin=stdin)
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert "standard input is not a listening socket" in done.stderr


def test_a_closed_standard_input(command: list[str]) -> None:
    """And not what a launcher has put in its place."""
    done = run(["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command])
    assert done.returncode == 2
    assert done.stderr.startswith("sniproxy: standard input is not a listening socket (it is close")


@pytest.mark.parametrize("fault", ["closed", "deleted"])
def test_a_hosts_directory_that_is_of_no_use(
    command: list[str], fault: str, tmp_path: pathlib.Path
) -> None:
    """The first line of the log says which directory and whose right, and it does not start."""
    if fault == "closed" and os.geteuid() != 0:
        pytest.skip("only root can make a directory that is closed to it")
    folder = tmp_path / "hosts"
    folder.mkdir(mode=0o700)

    def enter() -> None:
        os.chdir(folder)
        if fault == "deleted":
            folder.rmdir()

    where, reason = ".", "it has been deleted"
    if fault == "closed":
        os.chown(folder, 65534, 65534)
        # Root who may not pass over permissions, since others may not reach the source.
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
        where, reason = str(folder), "Permission denied"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = subprocess.run(
            command,
            stdin=listening,
            preexec_fn=enter,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
    words = f"the hosts directory is the working directory, '{where}', and uid {os.geteuid()}"
    assert (done.returncode, done.stderr) == (
        1,
        f"sniproxy: can't start: {words} can't use it: {reason}\n",
    )


def test_listen_fds(
    command: list[str], start: Start, backend_of: Make, tmp_path: pathlib.Path
) -> None:
    """Two sockets by sd_listen_fds(3), both served."""
    first = socket.create_server(("127.0.0.1", 0))
    second = socket.create_server(("::1", 0), family=socket.AF_INET6)

    def exec_with_pid() -> None:
        high = [os.dup(first.fileno()), os.dup(second.fileno())]
        os.dup2(high[0], 103)
        os.dup2(high[1], 104)
        os.dup2(103, 3)
        os.dup2(104, 4)
        os.environ["LISTEN_PID"] = str(os.getpid())

    hosts = tmp_path / "hosts"
    script = 'LISTEN_PID=$$ exec "$@" </dev/null'
    with open(hosts.parent / "log", "wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", *command],
            cwd=hosts,
            env=os.environ | {"LISTEN_FDS": "2"},
            preexec_fn=exec_with_pid,  # noqa: PLW1509 - no threads of ours are forked
            pass_fds=(3, 4),
            stderr=log,
        )
    probe = start()  # for the directory's name and a second reader of the same hosts
    backend = backend_of(probe.directory("a.example"))
    for listening in (first, second):
        with socket.create_connection(listening.getsockname()[:2], TIMEOUT) as client:
            client.sendall(HELLO)
            assert read_exactly(backend.accept(), len(HELLO)) == HELLO
        listening.close()
    process.send_signal(signal.SIGTERM)
    backend.close()
    assert process.wait(TIMEOUT) == 0


@pytest.mark.parametrize("closed", [[1], [2], [1, 2]])
def test_closed_standard_descriptors(
    command: list[str],
    hashed: bool,
    workers: str,
    backend_of: Make,
    tmp_path: pathlib.Path,
    closed: list[int],
) -> None:
    """Their numbers are free when it starts, and no connection may come to have one."""
    hosts = tmp_path / "hosts"
    directory = hosts / directory_name(hashed, "a.example")
    directory.mkdir(parents=True)
    backend = backend_of(directory)
    redirections = " ".join(f"{fd}>&-" for fd in closed)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *command],
            stdin=listening,
            cwd=hosts,
            env=os.environ | {"SNIPROXY_WORKERS": workers},
        )
        with socket.create_connection(listening.getsockname(), TIMEOUT) as client:
            client.sendall(HELLO)
            stream = backend.accept()
            assert read_exactly(stream, len(HELLO)) == HELLO
            for pid in children(process.pid) or [process.pid]:
                for fd in closed:
                    assert os.readlink(f"/proc/{pid}/fd/{fd}") not in stream_sockets()
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT) == 0


def stream_sockets() -> set[str]:
    """List all stream sockets as links of descriptors name them, proc(5)."""
    tcp = [line.split()[9] for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()]
    unix = [line.split() for line in pathlib.Path("/proc/net/unix").read_text().splitlines()]
    return {f"socket:[{inode}]" for inode in tcp + [one[6] for one in unix if one[4] == "0001"]}


def test_signals_that_were_blocked(start: Start) -> None:
    """Who starts it may have blocked them; a program of a shell or of s6 does not look."""
    blocked = {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGCHLD}
    proxy = start(preexec=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, blocked))
    wait_for(proxy, "event=start")
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for(proxy, "event=totals")
    assert proxy.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_graceful_stop(start: Start, backend_of: Make, number: int) -> None:
    """Nothing accepted is lost, nothing more is accepted, the next copy serves the queue."""
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as relayed, proxy.connect() as undecided:
        relayed.sendall(HELLO)
        stream = backend.accept()
        undecided.sendall(HELLO[:20])
        undecided_is_accepted(proxy)
        proxy.process.send_signal(number)
        wait_for(proxy, "event=stop")
        with proxy.connect() as late:
            late.sendall(HELLO)
            undecided.sendall(HELLO[20:])
            second = backend.accept()
            assert read_exactly(second, len(HELLO)) == HELLO
            for one in (stream, second):
                one.sendall(b"bye")
                one.close()
            assert read_all(relayed).endswith(b"bye")
            assert read_all(undecided) == b"bye"
            relayed.close()
            undecided.close()
            assert proxy.process.wait(TIMEOUT) == 0
            start(proxy.listening)
            backend.accept().sendall(b"late")
            assert read_exactly(late, 4) == b"late"


def undecided_is_accepted(proxy: Proxy) -> None:
    """Have the proxy count its connections until it has two."""
    for _ in range(1000):
        before = proxy.log.count("event=totals")
        proxy.process.send_signal(signal.SIGUSR1)
        while proxy.log.count("event=totals") == before:
            os.sched_yield()
        if "open=2" in proxy.log.splitlines()[-1]:
            return
    pytest.fail(proxy.log)


def test_out_of_time(start: Start, backend_of: Make) -> None:
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.sendall(HELLO)
        backend.accept()
        assert proxy.stop(signal.SIGHUP) == 0
        assert read_all(client) == b""
    assert "event=connections_closed count=1 reason=out_of_time" in proxy.log


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGHUP]])
def test_stop_at_once(start: Start, backend_of: Make, numbers: list[int]) -> None:
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.sendall(HELLO)
        backend.accept()
        for number in numbers:
            proxy.process.send_signal(number)
            if number != numbers[-1]:
                wait_for(proxy, "event=stop")
        assert proxy.process.wait(TIMEOUT) == 0
    assert "event=connections_closed count=1 reason=SIG" in proxy.log


def test_log_lines(start: Start, backend_of: Make) -> None:
    proxy = start(SNIPROXY_LOG="connections")
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.sendall(HELLO + b"12345")
        stream = backend.accept()
        read_exactly(stream, len(HELLO) + 5)
        stream.sendall(b"123")
        stream.close()
        read_all(client)
    proxy.ask(b"GET / HTTP/1.0\r\n\r\n")
    wait_for(proxy, "end=refused:not_a_handshake_record")
    wait_for(proxy, "end=closed")
    for line in proxy.log.splitlines():
        assert re.match(
            r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=\w+ event=\w+( \w+=\S+)*$", line
        )
    size = len(HELLO) + 5
    assert re.search(
        rf"event=connection client=127\.0\.0\.1:\d+ local=127\.0\.0\.1:\d+ host=a\.example "
        rf"end=closed hello_ms=\d+ seconds=[\d.]+ bytes_up={size} bytes_down=3\n",
        proxy.log,
    )


def test_a_bad_setting_is_one_warning(start: Start) -> None:
    proxy = start(SNIPROXY_LOG="loud")
    proxy.ask(b"x")
    assert proxy.log.count("event=bad_setting") == 1


def test_notifications(start: Start, tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(TIMEOUT)
        proxy = start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert manager.recv(100) == b"READY=1"
        assert proxy.stop(signal.SIGTERM) == 0
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_the_log_can_neither_block_nor_kill(
    command: list[str], start: Start, backend_of: Make, tmp_path: pathlib.Path, reader: str
) -> None:
    read, write = os.pipe()
    if reader == "gone":
        os.close(read)

    def log_to_pipe() -> None:
        os.dup2(write, 2)

    proxy = start(preexec=log_to_pipe, SNIPROXY_LOG="connections")
    os.close(write)
    for _ in range(1500):
        assert proxy.ask(b"G") == b"\x15\3\3\0\2\2\x0a"
    assert proxy.stop(signal.SIGTERM) == 0
    if reader == "asleep":
        os.close(read)


def refuses(address: tuple[str, int]) -> bool:
    """Say whether nobody listens."""
    with socket.socket() as late:
        return late.connect_ex(address) != 0


def test_inetd_wait(start: Start, backend_of: Make) -> None:
    """Descriptors 0, 1 and 2 are the listening socket: nothing is written, all are closed."""
    listening = socket.create_server(("127.0.0.1", 0))

    def like_inetd() -> None:
        os.dup2(0, 1)
        os.dup2(0, 2)

    proxy = start(listening, preexec=like_inetd, SNIPROXY_LOG="connections")
    assert proxy.ask(b"G") == b"\x15\3\3\0\2\2\x0a"
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.sendall(HELLO)
        stream = backend.accept()
        proxy.process.send_signal(signal.SIGHUP)
        address = listening.getsockname()
        listening.close()
        # Ours was the last other copy: when the proxy has closed all of its own, nobody listens.
        wait_until(lambda: refuses(address))
        stream.sendall(b"bye")
        stream.close()
        assert read_exactly(client, 3) == b"bye"
        client.close()
    assert proxy.process.wait(TIMEOUT) == 0


def test_descriptors_exhausted(start: Start, backend_of: Make, workers: str) -> None:
    """The oldest undecided hello makes room; an honest client is served. Each process that has none
    left says so once."""

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    proxy = start(preexec=few)
    backend = backend_of(proxy.directory("a.example"))
    slow = [proxy.connect() for _ in range(60)]
    for client in slow:
        client.sendall(HELLO[:10])
    with proxy.connect() as honest:
        honest.sendall(HELLO)
        stream = backend.accept()
        assert read_exactly(stream, len(HELLO)) == HELLO
        stream.sendall(b"served")
        assert read_exactly(honest, 6) == b"served"
    assert read_all(slow[0]) == b"\x15\3\3\0\2\2\x5a"
    for client in slow:
        client.close()
    assert 1 <= proxy.log.count("event=accept_failed") <= int(workers)


def test_a_thousand_idle_connections_stay(start: Start, backend_of: Make) -> None:
    proxy = start()
    backend = backend_of(proxy.directory("a.example"), backlog=1000)
    clients = []
    for _ in range(400):
        clients.append(proxy.connect())
        clients[-1].sendall(HELLO)
        read_exactly(backend.accept(), len(HELLO))
    for client, stream in zip(clients, backend.accepted, strict=True):
        client.sendall(b"?")
        assert stream.recv(1) == b"?"
        client.close()
