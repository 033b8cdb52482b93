"""The system turns against the proxy: log, signals, clock, hosts directory, memory."""

import ctypes
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import (
    TIMEOUT,
    Proxy,
    in_thread,
    read_all,
    read_exactly,
    wait_for,
)
from tests.faults.harness import (
    HELLO,
    HOST,
    SERVED,
    Backend,
    ask,
    crowd,
    eventually,
    family,
)
from tests.hello import hello

Start = Callable[..., Proxy]
Serve = Callable[..., Backend]
UNRECOGNIZED_NAME = b"\x15\3\3\0\2\2\x70"
CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000

LIBFAKETIME = pathlib.Path(f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketime.so.1")


def test_a_log_that_nobody_reads(unharmed: Start) -> None:
    """A pipe fills, is drained again, and says how many lines were lost."""
    read, write = os.pipe()
    proxy = unharmed(preexec=lambda: os.dup2(write, 2), SNIPROXY_LOG="connections")
    os.close(write)
    for _ in range(1500):
        ask(proxy)
    log = b""

    def drain() -> bool:
        nonlocal log
        os.set_blocking(read, False)
        try:
            while chunk := os.read(read, 1 << 20):
                log += chunk
        except BlockingIOError:
            pass
        ask(proxy)
        return b"event=log_lines_dropped" in log

    eventually(drain, "no line says that lines were lost")
    for line in log.splitlines()[:-1]:
        assert re.match(rb"time=\d{4}-\d\d-\d\dT\S+Z level=\w+ event=\w+", line), line
    reader = threading.Event()

    def go_on() -> None:
        while not reader.is_set():
            drain()

    thread = in_thread(go_on)
    ask(proxy)
    reader.set()
    thread.join()
    os.close(read)
    # Nobody is left to read: the next lines fail, and the proxy goes on.
    for _ in range(10):
        ask(proxy)


def own_mounts() -> None:
    """Enter a mount namespace of our own; nothing that is mounted here is seen outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "unshare")


def may_mount() -> bool:
    command = [sys.executable, "-c", "import tests.faults.test_system as t; t.own_mounts()"]
    return (
        os.geteuid() == 0
        and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


def mount_small(where: pathlib.Path, size: int) -> None:
    """Mount a file system of a few pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", os.fsencode(where), b"tmpfs", 0, options):
        raise OSError(ctypes.get_errno(), "mount")


def test_a_full_disk_under_the_log(unharmed: Start, tmp_path: pathlib.Path) -> None:
    """Lines are lost and counted; none is torn, whoever writes the next."""
    if not may_mount():
        pytest.skip("making a small file system takes root with CAP_SYS_ADMIN")
    where = tmp_path / "small"
    where.mkdir()

    def log_there() -> None:
        own_mounts()
        mount_small(where, 32768)
        (where / "other").write_bytes(bytes(16384))
        fd = os.open(where / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 2)

    proxy = unharmed(preexec=log_there, SNIPROXY_LOG="connections")
    for _ in range(500):
        ask(proxy)
    seen = pathlib.Path(f"/proc/{proxy.process.pid}/root{where}/log")
    longest = max(map(len, seen.read_bytes().splitlines())) + 1
    assert 16384 - longest <= seen.stat().st_size <= 16384
    (seen.parent / "other").unlink()
    for _ in range(3):
        ask(proxy)
    eventually(lambda: b"event=log_lines_dropped" in seen.read_bytes(), "the log did not go on")
    for line in seen.read_text().splitlines():
        assert re.fullmatch(r"\S+Z level=\w+ event=\w+( \w+=\S+)*", line), line
        assert line.count("event=") == 1, line


def test_hosts_on_a_full_file_system(start: Start, tmp_path: pathlib.Path) -> None:
    """A look-up writes nothing, so there is nothing to run out of."""
    if not may_mount():
        pytest.skip("making a small file system takes root with CAP_SYS_ADMIN")
    hosts = tmp_path / "hosts"
    inside = (
        "import os, pathlib, sys; import tests.faults.test_system as t\n"
        "directory = pathlib.Path.cwd()\n"
        "t.mount_small(directory, 16384); os.chdir(directory)\n"
        "os.mkdir(sys.argv[1])\n"
        "import socket\n"
        "one = socket.socket(socket.AF_UNIX); one.bind(sys.argv[1] + '/tls-socket'); one.listen()\n"
        "full = open('full', 'wb', buffering=0)\n"
        "try:\n"
        "    while True: full.write(bytes(4096))\n"
        "except OSError: pass\n"
        "if os.fork() == 0:\n"
        "    while True:\n"
        "        stream, _ = one.accept(); stream.recv(65536)\n"
        "        stream.send(b'served'); stream.close()\n"
        "one.close(); full.close()\n"
        "os.execvp(sys.argv[2], sys.argv[2:])\n"
    )
    probe = start()
    name = probe.directory(HOST).name
    command = [sys.executable, "-c", inside, name, *proxy_command(probe)]
    root = str(pathlib.Path(__file__).parents[2])
    process = subprocess.Popen(
        command,
        stdin=probe.listening,
        cwd=hosts,
        env=os.environ | {"PYTHONPATH": root},
        preexec_fn=own_mounts,  # noqa: PLW1509 - no threads of ours are forked
        stderr=subprocess.DEVNULL,
    )
    probe.stop(signal.SIGTERM, signal.SIGHUP)
    for _ in range(20):
        assert ask(probe) >= 0
    helpers = [pid for pid in family(process.pid) if pid != process.pid]
    process.terminate()
    process.wait(TIMEOUT)
    for pid in helpers:
        if pathlib.Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def proxy_command(proxy: Proxy) -> list[str]:
    return [os.fsdecode(word) for word in proxy.process.args]  # type: ignore[union-attr]


def test_hosts_directory_removed_and_replaced(unharmed: Start, tmp_path: pathlib.Path) -> None:
    """The directory of the start is the one that counts, wherever it is and whether it is."""
    proxy = unharmed()
    hosts = proxy.hosts
    aside = tmp_path / "aside"
    hosts.rename(aside)
    ask(proxy)
    hosts.mkdir()
    ask(proxy)
    shutil.rmtree(hosts)
    aside.rename(hosts)
    ask(proxy)


def test_hosts_directory_deleted(start: Start, serve: Serve) -> None:
    proxy = start()
    serve(proxy.directory(HOST))
    with proxy.connect() as client:
        client.sendall(HELLO)
        read_exactly(client, len(SERVED))
        shutil.rmtree(proxy.hosts)
        long = "c." * 120 + "example"
        for _ in range(20):
            assert proxy.ask(HELLO) == UNRECOGNIZED_NAME
            assert proxy.ask(hello(long)) == UNRECOGNIZED_NAME
        client.sendall(b"still here")
        assert read_exactly(client, 10) == b"still here"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights over files")
def test_hosts_directory_closed_and_opened(start: Start, serve: Serve) -> None:
    """The right to enter comes and goes, for names short and long; each look-up asks anew."""
    prctl = ctypes.CDLL(None).prctl

    def obey_permissions() -> None:
        for capability in (1, 2):
            prctl(24, capability, 0, 0, 0)

    proxy = start(preexec=obey_permissions)
    long = "c." * 120 + "example"
    for host in (HOST, long):
        serve(proxy.directory(host))
        ask(proxy, hello(host))
    for _ in range(10):
        os.chown(proxy.hosts, 65534, 65534)
        proxy.hosts.chmod(0o700)
        for host in (HOST, long):
            assert proxy.ask(hello(host)) == UNRECOGNIZED_NAME
        proxy.hosts.chmod(0o711)
        for host in (HOST, long):
            ask(proxy, hello(host))


def test_a_storm_of_hang_ups(start: Start, serve: Serve) -> None:
    """Those that come at the same time are one, the second one means now, and all others nothing;
    the socket stays usable."""
    proxy = start()
    serve(proxy.directory(HOST))
    for _ in range(5):
        clients = list(crowd(proxy, 20, HELLO))
        for client in clients:
            read_exactly(client, len(SERVED))
        for _ in range(2):
            for _ in range(100):
                proxy.process.send_signal(signal.SIGHUP)
            wait_for(proxy, "event=stop")
        for client in clients:
            read_all(client)
            client.close()
        assert proxy.process.wait(TIMEOUT) == 0
        assert "reason=SIGHUP" in proxy.log.partition("event=connections_closed")[2]
        assert "Traceback" not in proxy.log
        proxy = start(proxy.listening)
        ask(proxy)


def test_a_storm_of_questions(start: Start, serve: Serve) -> None:
    """SIGUSR1 as fast as it can be sent: it is answered, and everybody is served all the same.
    (Where signals come faster than the kernel can deliver them, that is when they are over: then
    a process has no instruction of its own.)"""
    proxy = start()
    serve(proxy.directory(HOST))
    ask(proxy)
    storm = f"import os\nfor _ in range(500_000): os.kill({proxy.process.pid}, {signal.SIGUSR1:d})"
    with subprocess.Popen([sys.executable, "-c", storm]) as sender:
        while sender.poll() is None:
            ask(proxy)
    ask(proxy)
    wait_for(proxy, "event=totals")
    log = proxy.log
    proxy.log_path.write_text("")
    assert "Exception ignored" not in log


def test_the_clock_jumps(start: Start, serve: Serve, tmp_path: pathlib.Path) -> None:
    """Ten years ahead, and back before the epoch: what is timed is timed by the monotonic clock."""
    if not LIBFAKETIME.exists():
        pytest.skip("libfaketime is missing: install faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    proxy = start(
        LD_PRELOAD=str(LIBFAKETIME),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        DONT_FAKE_MONOTONIC="1",
        SNIPROXY_LOG="connections",
    )
    serve(proxy.directory(HOST))
    ask(proxy)
    slow = proxy.connect()
    slow.sendall(HELLO[:10])
    for jump in ("+10y", "-60y", "+3650d", "-3650d"):
        clock.write_text(jump + "\n")
        for _ in range(10):
            ask(proxy)
    # The one that owes a hello is neither ended early nor for ever.
    slow.sendall(HELLO[10:])
    assert read_exactly(slow, len(SERVED)) == SERVED
    slow.close()
    proxy.stop(signal.SIGTERM)
    years = {line[:4] for line in proxy.log.splitlines()}
    if len(years) < 2:
        pytest.skip(
            "not applicable: this sniproxy is not linked to a C library that could be preloaded"
        )


def test_memory_runs_out(start: Start, serve: Serve) -> None:
    """At the limit on its address space connections end, the process does not."""
    room = 24 << 20

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))

    proxy = start(preexec=limit)
    serve(proxy.directory(HOST), "--deaf")
    serve(proxy.directory("b.example"))
    served = hello("b.example")
    ask(proxy, served)
    for pid in family(proxy.process.pid):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        size = int(re.findall(r"VmSize:\s+(\d+)", status)[0]) * 1024
        resource.prlimit(pid, resource.RLIMIT_AS, (size + room, size + room))
    # Each makes the proxy keep what its backend does not take, and the start of a long hello.
    wire = HELLO + bytes(600_000)
    clients = []
    for _ in range(200):
        client = proxy.connect()
        client.setblocking(False)
        try:
            client.send(wire)
        except OSError:
            pass
        clients.append(client)
        undecided = proxy.connect()
        undecided.setblocking(False)
        try:
            undecided.send(hello("c.example", record=1, padding=60_000)[:-400])
        except OSError:
            pass
        clients.append(undecided)
    eventually(lambda: "MemoryError" in proxy.log, proxy.log)
    assert proxy.process.poll() is None, proxy.log
    for client in clients:
        client.close()

    def serves() -> bool:
        try:
            ask(proxy, served)
        except (AssertionError, OSError):
            return False
        return True

    eventually(serves, lambda: proxy.log)
    for _ in range(50):
        ask(proxy, served)
    # Expected here, and nowhere else: the log of each connection that ended for want of memory.
    proxy.stop(signal.SIGTERM, signal.SIGHUP)
    assert "Traceback" not in proxy.log
    unexpected = [line for line in proxy.log.splitlines() if "event=unexpected_error" in line]
    assert all("type=MemoryError" in line or "Errno 12" in line for line in unexpected)
    proxy.log_path.write_text("")
