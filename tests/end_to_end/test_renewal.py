"""SIGUSR2 from outside: the program is run anew in its process, and no connection notices.

The program is started by a path of the test's own, where a broken one can be put in its place.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Proxy,
    children,
    read_exactly,
    state,
    wait_for,
    wait_until,
)
from tests.end_to_end.test_workers import workers_of
from tests.hello import hello
from tests.ports import free_port

HELLO = hello("a.example")
Start = Callable[..., Proxy]


class Program:
    """A sniproxy at a path of the test's own."""

    def __init__(self, command: list[str], folder: pathlib.Path) -> None:
        folder.mkdir(mode=0o755)
        self._original = pathlib.Path(shutil.which(command[0]) or command[0])
        if command[0] == sys.executable:
            # An interpreter finds its packages beside the name that it is called by.
            (folder / "bin").mkdir()
            (folder / "pyvenv.cfg").write_bytes(
                (pathlib.Path(sys.prefix) / "pyvenv.cfg").read_bytes()
            )
            (folder / "lib").symlink_to(pathlib.Path(sys.prefix) / "lib")
            self.path = folder / "bin" / "python"
        else:
            self.path = folder / "sniproxy"
        self.path.symlink_to(self._original)
        self.command = [str(self.path), *command[1:]]
        self._gate, self.answered = folder / "gate", folder / "answered"
        said = subprocess.run(
            [*self.command, "--hand-over-formats"], capture_output=True, text=True, check=True
        )
        self.answer = f"echo {said.stdout.strip()}"
        """What a script does to answer a trial as the program does."""

    def replace(self, text: str) -> None:
        """Put a script in its place, as an upgrade would: by a rename."""
        new = self.path.with_name("new")
        new.write_text(f"#!/bin/sh\n{text}\n")
        new.chmod(0o755)
        new.rename(self.path)

    def wait(self) -> None:
        """Have the next trial answer, and then wait until it may ``go_on``, with the program in its
        place again."""
        wait = f"touch {self.answered}; while [ ! -e {self._gate} ]; do sleep 0.05; done"
        self.replace(f"{self.answer}; {wait}")

    def go_on(self) -> None:
        self.restore()
        self._gate.touch()

    def restore(self) -> None:
        self.path.unlink()
        self.path.symlink_to(self._original)


@pytest.fixture
def program(command: list[str], tmp_path: pathlib.Path) -> Program:
    return Program(command, tmp_path / "program")


@pytest.fixture
def start_it(program: Program, start: Start, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start the program of the test's own; the fixture that ends it is ``start``."""
    make = Proxy.__init__

    def begin(self: Proxy, _command: object, *words: object) -> None:
        make(self, program.command, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(Proxy, "__init__", begin)

    def started(*, at_once: bool = False, **options: object) -> Proxy:
        proxy = start(**({"SNIPROXY_LOG": "connections"} | options))
        wait_for(proxy, "event=start")
        if at_once:
            return proxy
        workers = int(proxy.environment["SNIPROXY_WORKERS"])
        wait_until(lambda: len(children(proxy.process.pid)) == (workers if workers > 1 else 0))
        return proxy

    return started


@pytest.fixture
def proxy(start_it: Start) -> Proxy:
    return start_it()


@pytest.fixture
def backend(proxy: Proxy, backend_of: Callable[..., Backend]) -> Backend:
    return backend_of(proxy.directory("a.example"))


Pair = tuple[socket.socket, socket.socket]


def relayed(proxy: Proxy, backend: Backend) -> Pair:
    client = proxy.connect()
    client.sendall(HELLO)
    stream = backend.accept()
    assert read_exactly(stream, len(HELLO)) == HELLO
    return client, stream


def both_ways(*pairs: Pair) -> None:
    for client, stream in pairs:
        client.sendall(b"ping")
        stream.sendall(b"pong")
    for client, stream in pairs:
        assert read_exactly(stream, 4) == b"ping"
        assert read_exactly(client, 4) == b"pong"


def starts(proxy: Proxy) -> int:
    return proxy.log.count("event=start ")


def renew(proxy: Proxy) -> None:
    """Ask for a renewal, and wait until it is done."""
    before = starts(proxy)
    proxy.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: starts(proxy) > before)


def close(*pairs: Pair) -> None:
    for pair in pairs:
        for one in pair:
            one.close()


def ended(proxy: Proxy) -> list[str]:
    return [line for line in proxy.log.splitlines() if "event=connection " in line]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_no_connection_notices(proxy: Proxy, backend: Backend) -> None:
    pairs = [relayed(proxy, backend) for _ in range(20)]
    half = proxy.connect()
    half.sendall(HELLO[:50])
    pid, workers = proxy.process.pid, children(proxy.process.pid)
    held = []
    for _ in range(3):
        both_ways(*pairs)
        for client, stream in pairs:
            client.sendall(b"under")
            stream.sendall(b"way")
        renew(proxy)
        for client, stream in pairs:
            assert read_exactly(stream, 5) == b"under"
            assert read_exactly(client, 3) == b"way"
        assert proxy.log.splitlines()[-1].endswith(" adopted=21 lost=0")
        held.append(descriptors(pid))
    # The same process with other workers, which keeps nothing from one time to the next.
    assert proxy.process.poll() is None
    assert len(children(pid)) == len(workers)
    assert not workers or children(pid) != workers
    assert len(set(held)) == 1
    half.sendall(HELLO[50:])
    stream = backend.accept()
    assert read_exactly(stream, len(HELLO)) == HELLO
    pairs.append((half, stream))
    pairs.append(relayed(proxy, backend))
    both_ways(*pairs)
    close(*pairs)
    wait_until(lambda: len(ended(proxy)) == 22)
    assert proxy.stop(signal.SIGTERM) == 0
    assert "lost=1" not in proxy.log


def test_true_seconds_and_bytes(proxy: Proxy, backend: Backend) -> None:
    begin = time.monotonic()
    pair = relayed(proxy, backend)
    since = time.monotonic()
    address, local = pair[0].getsockname(), pair[0].getpeername()
    for _ in range(3):
        both_ways(pair)
        renew(proxy)
    both_ways(pair)
    least = time.monotonic() - since
    close(pair)
    wait_until(lambda: len(ended(proxy)) == 1)
    most = time.monotonic() - begin
    (line,) = ended(proxy)
    addresses = f"client={address[0]}:{address[1]} local={local[0]}:{local[1]}"
    assert f"{addresses} host=a.example end=closed" in line
    assert f"bytes_up={len(HELLO) + 16} bytes_down=16" in line
    match = re.search(r"seconds=([0-9.]+)", line)
    assert match is not None
    assert least - 0.1 <= float(match[1]) <= most + 0.1


def test_unsent_bytes(proxy: Proxy, backend: Backend) -> None:
    pairs = [relayed(proxy, backend) for _ in range(4)]
    data = os.urandom(12_000_000)
    threads = []
    for number, pair in enumerate(pairs):
        sender = pair[number % 2]
        threads.append(threading.Thread(target=sender.sendall, args=(data,)))
        threads[-1].start()
    for _ in range(3):
        renew(proxy)
        for number, pair in enumerate(pairs):
            receiver = pair[1 - number % 2]
            assert read_exactly(receiver, 1_000_000)
    for number, pair in enumerate(pairs):
        assert read_exactly(pair[1 - number % 2], len(data) - 3_000_000) == data[3_000_000:]
    for thread in threads:
        thread.join()
    both_ways(*pairs)
    close(*pairs)


# How it may have been started.


def test_by_names(
    proxy: Proxy, program: Program, workers: str, backend: Backend, tmp_path: pathlib.Path
) -> None:
    """LISTEN_FDS, with names, too many of them and none."""
    for names in ("web", "", "a:b:c"):
        listening = socket.create_server(("127.0.0.1", 0))
        log = tmp_path / f"log{names}"
        # The shell gives it the number and says its own.
        variables = f"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={names}"
        words = f'exec 3<&0 </dev/null; {variables} exec "$@"'
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["/bin/sh", "-c", words, "sh", *program.command],
                stdin=listening,
                stderr=file,
                cwd=proxy.hosts,
                env=os.environ | {"SNIPROXY_WORKERS": workers},
            )
        check(process, log, listening, backend)


def test_inetd_style(
    proxy: Proxy, program: Program, workers: str, backend: Backend, tmp_path: pathlib.Path
) -> None:
    """All three standard descriptors are the socket: there is no log to look at."""
    listening = socket.create_server(("127.0.0.1", 0))
    process = subprocess.Popen(
        program.command,
        stdin=listening,
        stdout=listening,
        stderr=listening,
        cwd=proxy.hosts,
        env=os.environ | {"SNIPROXY_WORKERS": workers},
    )
    check(process, None, listening, backend)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_with_closed_standard_descriptors(
    proxy: Proxy, program: Program, workers: str, backend: Backend, closed: str
) -> None:
    """What takes their place here is closed again for the next program: none starts with it."""
    listening = socket.create_server(("127.0.0.1", 0))
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *program.command],
        stdin=listening,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=proxy.hosts,
        env=os.environ | {"SNIPROXY_WORKERS": workers},
    )
    check(process, None, listening, backend)


@pytest.mark.parametrize("called", ["by its path", "by its name"])
def test_by_sniproxy_listen(
    proxy: Proxy,
    program: Program,
    workers: str,
    backend: Backend,
    tmp_path: pathlib.Path,
    called: str,
) -> None:
    """By its name, it is the one beside sniproxy-listen, now and later: PATH may have another."""
    port = free_port()
    log = tmp_path / "log-listen"
    words = program.command
    if program.path.name == "python":
        if called == "by its name":
            pytest.skip("not applicable: an interpreter is run by a path, whatever the script is")
        script = "from sniproxy.commands import sniproxy_listen; sniproxy_listen()"
        command = [str(program.path), "-P", "-c", script]
    else:
        link = program.path.with_name("sniproxy-listen")
        link.symlink_to(program.path)
        command = [str(link)]
        if called == "by its name":
            words = ["sniproxy"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, f"127.0.0.1:{port}", *words],
            stdin=subprocess.DEVNULL,
            stderr=file,
            cwd=proxy.hosts,
            env=os.environ | {"SNIPROXY_WORKERS": workers},
        )
    check(process, log, ("127.0.0.1", port), backend)


def check(
    process: subprocess.Popen[bytes],
    log: pathlib.Path | None,
    address: socket.socket | tuple[str, int],
    backend: Backend,
) -> None:
    """See that a program is renewed twice, whoever has started it."""
    listening = address if isinstance(address, socket.socket) else None
    where = listening.getsockname() if listening is not None else address
    try:
        if log is not None:
            wait_until(lambda: "event=start" in log.read_text())
        client = socket.create_connection(where, TIMEOUT)
        client.sendall(HELLO)
        stream = backend.accept()
        assert read_exactly(stream, len(HELLO)) == HELLO
        pair = client, stream
        for turn in (1, 2):
            both_ways(pair)
            image = started_at(process.pid)
            process.send_signal(signal.SIGUSR2)
            if log is not None:
                wait_until(lambda turn=turn: log.read_text().count("event=start ") > turn)
                assert " adopted=1 lost=0" in log.read_text().splitlines()[-1]
            else:
                wait_until(lambda image=image: started_at(process.pid) != image)
            both_ways(pair)
        another = socket.create_connection(where, TIMEOUT)
        another.sendall(HELLO)
        other = backend.accept()
        assert read_exactly(other, len(HELLO)) == HELLO
        close(pair, (another, other))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
        if listening is not None:
            listening.close()


def started_at(pid: int) -> bytes:
    """Tell one program in a process from the next: by the random bytes that the kernel gives each
    (AT_RANDOM's address, getauxval(3)), or where its stack is."""
    return pathlib.Path(f"/proc/{pid}/auxv").read_bytes()


def test_where_processes_that_end_are_ignored(
    start_it: Start, backend_of: Callable[..., Backend]
) -> None:
    """SIGCHLD, by whoever has started it: the program on trial is still waited for."""
    proxy = start_it(preexec=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    pair = relayed(proxy, backend_of(proxy.directory("a.example")))
    for _ in range(2):
        renew(proxy)
        both_ways(pair)
    assert "unexpected_error" not in proxy.log
    close(pair)


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.05])
def test_while_workers_still_start(
    start_it: Start, backend_of: Callable[..., Backend], pause: float
) -> None:
    """From the first line of the log on it is taken; nobody is refused for it."""
    proxy = start_it(at_once=True)
    time.sleep(pause)
    proxy.process.send_signal(signal.SIGUSR2)
    backend = backend_of(proxy.directory("a.example"))
    pair = relayed(proxy, backend)
    wait_until(lambda: starts(proxy) == 2)
    both_ways(pair, another := relayed(proxy, backend))
    close(pair, another)
    assert proxy.stop(signal.SIGTERM) == 0


# What can be wrong with the new program.


BROKEN = {
    "nothing": ("exit 0", "can't go on with our connections: b''"),
    "another_format": ("echo hand-over formats: 65000", "can't go on with our connections"),
    "usage": ("echo usage: sniproxy >&2; exit 2", "usage: sniproxy"),
    "fails": ("exit 1", "can't go on with our connections"),
    "floods": ("while :; do echo no; done", "can't go on with our connections"),
    "hangs": ("exec sleep 600", "did not say in 5 seconds which connections"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_program_costs_nothing(
    proxy: Proxy, backend: Backend, program: Program, how: str
) -> None:
    text, told = BROKEN[how]
    pair = relayed(proxy, backend)
    before = children(proxy.process.pid)
    program.replace(text)
    proxy.process.send_signal(signal.SIGUSR2)
    # Meanwhile it serves, also a second request for the same.
    both_ways(pair, second := relayed(proxy, backend))
    wait_for(proxy, "event=not_renewed")
    assert told.replace("b''", "") in proxy.log
    both_ways(pair, second)
    # It is told before what was tried is ended.
    wait_until(lambda: children(proxy.process.pid) == before)
    program.restore()
    renew(proxy)
    assert proxy.log.splitlines()[-1].endswith(" adopted=2 lost=0")
    both_ways(pair, second)
    close(pair, second)


def test_files_that_are_no_program(proxy: Proxy, backend: Backend, program: Program) -> None:
    pair = relayed(proxy, backend)
    image = program.path.resolve().read_bytes()
    for number, content in enumerate((b"", image[: len(image) // 2], b"\x7fELF" + bytes(500)), 1):
        program.path.unlink(missing_ok=True)
        program.path.write_bytes(content)
        program.path.chmod(0o755)
        proxy.process.send_signal(signal.SIGUSR2)
        wait_until(lambda number=number: proxy.log.count("event=not_renewed") == number)
        both_ways(pair)
    program.path.unlink()
    proxy.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: proxy.log.count("event=not_renewed") == 4)
    assert "No such file" in proxy.log
    both_ways(pair)
    close(pair)


def test_a_file_that_others_may_write_to(proxy: Proxy, backend: Backend, program: Program) -> None:
    pair = relayed(proxy, backend)
    program.replace("echo it was run >&2")
    program.path.chmod(0o777)
    proxy.process.send_signal(signal.SIGUSR2)
    wait_for(proxy, "event=not_renewed")
    assert "not safe to run" in proxy.log
    assert "it was run" not in proxy.log
    both_ways(pair)
    close(pair)


def test_an_exec_that_fails_after_all(
    proxy: Proxy, backend: Backend, program: Program, tmp_path: pathlib.Path
) -> None:
    """The program answers, and is gone when it is to be run: the old one goes on."""
    pairs = [relayed(proxy, backend) for _ in range(10)]
    pid, before = proxy.process.pid, starts(proxy)
    program.replace(f'rm "$0"; {program.answer}')
    proxy.process.send_signal(signal.SIGUSR2)
    wait_for(proxy, "event=not_renewed")
    wait_until(lambda: starts(proxy) > before)
    assert proxy.log.splitlines()[-1].endswith(" adopted=10 lost=0")
    assert proxy.process.pid == pid
    both_ways(*pairs)
    # And can be renewed when there is a program again.
    program.path.symlink_to(program._original)
    renew(proxy)
    both_ways(*pairs, another := relayed(proxy, backend))
    close(*pairs, another)


def test_nothing_of_ours_reaches_the_program_on_trial(
    proxy: Proxy, backend: Backend, program: Program, tmp_path: pathlib.Path
) -> None:
    """No descriptor, no blocked signal."""
    pair = relayed(proxy, backend)
    seen = tmp_path / "seen"
    program.replace(f"ls -l /proc/$$/fd >{seen}; exec grep SigBlk /proc/self/status >>{seen}")
    proxy.process.send_signal(signal.SIGUSR2)
    wait_for(proxy, "event=not_renewed")
    files, _, blocked = seen.read_text().partition("SigBlk:")
    assert "socket:" not in files
    assert "eventpoll" not in files
    assert int(blocked, 16) == 0
    close(pair)


# In the middle of it.


def test_a_storm(proxy: Proxy, backend: Backend) -> None:
    pairs = [relayed(proxy, backend) for _ in range(10)]
    # From the first on they come at any time: also while the next program starts.
    for _ in range(300):
        proxy.process.send_signal(signal.SIGUSR2)
        time.sleep(0.005)
    wait_until(lambda: starts(proxy) > 1)
    both_ways(*pairs)
    assert " lost=0" in proxy.log
    assert not re.search(r" lost=[1-9]", proxy.log)
    close(*pairs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_in_the_middle(
    proxy: Proxy, backend: Backend, program: Program, number: signal.Signals
) -> None:
    """While the new program is on trial: a stop is a stop."""
    pair = relayed(proxy, backend)
    program.replace("exec sleep 600")
    proxy.process.send_signal(signal.SIGUSR2)
    # The one on trial is our process's newest child.
    wait_until(lambda: any(is_asleep(pid) for pid in children(proxy.process.pid)))
    (trial,) = (pid for pid in children(proxy.process.pid) if is_asleep(pid))
    proxy.process.send_signal(number)
    wait_for(proxy, "event=stop ")
    both_ways(pair)
    close(pair)
    assert proxy.process.wait(TIMEOUT) == 0
    assert not pathlib.Path(f"/proc/{trial}").exists()


def is_asleep(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    return False


@contextlib.contextmanager
def handing_over(proxy: Proxy, program: Program, workers: str) -> Iterator[None]:
    """Begin to hand connections over, and do something before that is done."""
    pid = proxy.process.pid
    if workers == "1":
        program.wait()
        proxy.process.send_signal(signal.SIGUSR2)
        wait_until(program.answered.exists)
        proxy.process.send_signal(signal.SIGUSR1)
        wait_for(proxy, "event=totals")
        # The answer is read. Its end is seen first, and acted on; then whatever has come meanwhile.
        (trial,) = children(pid)
        stopped = pid
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: state(stopped) == "T")
        program.go_on()
        wait_until(lambda: state(trial) == "Z")
    else:
        # One is done with it, the other has not heard of it yet.
        stopped, other = children(pid)
        os.kill(stopped, signal.SIGSTOP)
        proxy.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: other not in children(pid))
    yield
    os.kill(stopped, signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("there", [True, False], ids=["another_program", "no_program"])
def test_a_stop_while_connections_are_handed_over(
    proxy: Proxy,
    backend: Backend,
    program: Program,
    workers: str,
    number: signal.Signals,
    there: bool,
) -> None:
    """It is carried out by whoever goes on with them, and cuts none off."""
    pairs = [relayed(proxy, backend) for _ in range(20)]
    half = proxy.connect()
    half.sendall(HELLO[:50])
    both_ways(*pairs)
    with handing_over(proxy, program, workers):
        if not there:
            program.path.unlink()
        proxy.process.send_signal(number)
    wait_for(proxy, f"event=stop reason={number.name} open=21\n")
    assert " adopted=21 lost=0\n" in proxy.log.partition("event=stop ")[0]
    assert ("event=not_renewed" in proxy.log) == (not there)
    half.sendall(HELLO[50:])
    pairs.append((half, backend.accept()))
    assert read_exactly(pairs[-1][1], len(HELLO)) == HELLO
    both_ways(*pairs)
    close(*pairs)
    assert proxy.process.wait(TIMEOUT) == 0
    assert len(ended(proxy)) == 21
    assert "connections_closed" not in proxy.log


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGHUP), (signal.SIGINT,)], ids=["two", "interrupt"]
)
def test_a_second_stop_while_connections_are_handed_over(
    proxy: Proxy,
    backend: Backend,
    program: Program,
    workers: str,
    numbers: tuple[signal.Signals, ...],
) -> None:
    """Now is now: there is no next program."""
    pairs = [relayed(proxy, backend) for _ in range(20)]
    with handing_over(proxy, program, workers):
        for number in numbers:
            proxy.process.send_signal(number)
    assert proxy.process.wait(TIMEOUT) == 0
    assert starts(proxy) == 1
    for client, stream in pairs:
        assert client.recv(1) == stream.recv(1) == b""
    close(*pairs)


def test_a_stop_right_behind(proxy: Proxy, backend: Backend) -> None:
    """Whatever it meets, the process ends, and by itself."""
    for pause in (0.0, 0.05, 0.1, 0.2, 0.4):
        if proxy.process.poll() is not None:
            break
        pair = relayed(proxy, backend)
        proxy.process.send_signal(signal.SIGUSR2)
        time.sleep(pause)
        if pause == 0.4:
            proxy.process.send_signal(signal.SIGTERM)
        close(pair)
    assert proxy.process.wait(TIMEOUT) == 0


def test_a_worker_is_killed_in_the_middle(
    proxy: Proxy, backend: Backend, program: Program, workers: str
) -> None:
    """While the new program is on trial: its own connections are lost, and no other's."""
    if workers == "1":
        pytest.skip("not applicable: there is no worker")
    pairs = by_both(proxy, backend)
    victim = children(proxy.process.pid)[0]
    program.wait()
    proxy.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: len(children(proxy.process.pid)) == 3)
    os.kill(victim, signal.SIGKILL)
    wait_for(proxy, "event=worker_died")
    program.go_on()
    wait_until(lambda: starts(proxy) == 2)
    alive = [pair for pair in pairs if goes_on(pair)]
    assert 0 < len(alive) < len(pairs)
    assert proxy.log.splitlines()[-1].endswith(f" adopted={len(alive)} lost=0")
    wait_until(lambda: len(children(proxy.process.pid)) == 2)
    both_ways(another := relayed(proxy, backend))
    close(*pairs, another)


def by_both(proxy: Proxy, backend: Backend) -> list[Pair]:
    """Have connections relayed, some by each of two workers: one may serve before the other."""
    pairs: list[Pair] = []
    while len(pairs) < 40 or len(set(workers_of(proxy, [client for client, _ in pairs]))) < 2:
        pairs.append(relayed(proxy, backend))
        assert len(pairs) < 1000
    return pairs


def goes_on(pair: Pair) -> bool:
    client, stream = pair
    try:
        client.sendall(b"x")
        return stream.recv(1) == b"x"
    except OSError:
        return False


def test_a_worker_that_hangs_has_its_own_deadline(
    proxy: Proxy, backend: Backend, workers: str
) -> None:
    if workers == "1":
        pytest.skip("not applicable: there is no worker")
    pairs = by_both(proxy, backend)
    victim = children(proxy.process.pid)[0]
    os.kill(victim, signal.SIGSTOP)
    proxy.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: starts(proxy) == 2)
    assert "how=SIGKILL again_in_seconds=never" in proxy.log
    alive = [pair for pair in pairs if goes_on(pair)]
    assert 0 < len(alive) < len(pairs)
    assert proxy.log.splitlines()[-1].endswith(f" adopted={len(alive)} lost=0")
    both_ways(another := relayed(proxy, backend))
    close(*pairs, another)


def test_more_than_may_be_under_way(start_it: Start, backend_of: Callable[..., Backend]) -> None:
    """All are served until the time for it is over; then what fits goes on, and all of that."""

    def few() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))

    proxy = start_it(preexec=few)
    backend = backend_of(proxy.directory("a.example"))
    count = 115 if proxy.environment["SNIPROXY_WORKERS"] == "1" else 180
    pairs = []
    for _ in range(count):
        pairs.append(relayed(proxy, backend))
        # Else so many hellos that are the same would count as a loop.
        both_ways(pairs[-1])
    renewed = threading.Thread(target=renew, args=(proxy,))
    renewed.start()
    both_ways(*pairs)
    renewed.join()
    match = re.search(r"event=start .*adopted=(\d+) lost=0", proxy.log)
    assert match is not None
    alive = [pair for pair in pairs if goes_on(pair)]
    assert len(alive) == int(match[1])
    assert 50 < len(alive) < count
    assert "reason=no_room" in proxy.log
    both_ways(*alive)
    close(*pairs)


# Under a service manager.


@pytest.fixture
def manager(tmp_path: pathlib.Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(TIMEOUT)
        yield made


@pytest.mark.parametrize("keeps", [True, False])
def test_a_manager_that_keeps_parcels(
    start_it: Start,
    backend_of: Callable[..., Backend],
    tmp_path: pathlib.Path,
    manager: socket.socket,
    program: Program,
    workers: str,
    keeps: bool,
) -> None:
    """They go to it, the exit status asks for a start, and there they come back."""
    proxy = start_it(NOTIFY_SOCKET=manager.getsockname())
    backend = backend_of(proxy.directory("a.example"))
    pairs = [relayed(proxy, backend) for _ in range(30)]
    stored: list[tuple[str, int]] = []

    def manage() -> None:
        while True:
            text, numbers, _, _ = socket.recv_fds(manager, 4096, 253)
            words = dict(line.split("=", 1) for line in text.decode().splitlines())
            if ("STOPPING" in words and not keeps) or "END" in words:
                return
            if "FDSTORE" in words and keeps:
                stored.extend((words["FDNAME"], number) for number in numbers)
                continue
            for number in numbers:
                os.close(number)
            if "FDSTOREREMOVE" in words:
                for one in [one for one in stored if one[0] == words["FDNAME"]]:
                    stored.remove(one)
                    os.close(one[1])

    thread = threading.Thread(target=manage)
    thread.start()
    proxy.process.send_signal(signal.SIGUSR2)
    if not keeps:
        wait_for(proxy, "event=not_handed_over")
        both_ways(*pairs)
        close(*pairs)
        assert proxy.process.wait(TIMEOUT) == 0
        thread.join()
        assert proxy.log.count("event=not_handed_over") == 1
        return
    assert proxy.process.wait(TIMEOUT) == 75
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.sendto(b"END=1", manager.getsockname())
    thread.join()
    assert stored
    assert all(re.fullmatch(r"sniproxy-parcel\.\d+", name) for name, _ in stored)
    # As systemd starts the next: the socket, then what it keeps.
    passed = [proxy.listening.fileno(), *(number for _, number in stored)]
    high = [os.dup2(number, 300 + at) for at, number in enumerate(passed)]
    moves = " ".join(f"{3 + at}<&{300 + at} {300 + at}<&-" for at in range(len(passed)))
    names = ":".join(["sniproxy.socket", *(name for name, _ in stored)])
    script = (
        f"export LISTEN_PID=$$ LISTEN_FDS={len(passed)} LISTEN_FDNAMES={names}; "
        f'exec "$@" </dev/null {moves}'
    )
    log = tmp_path / "log-next"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["/bin/bash", "-c", script, "sh", *program.command],
            pass_fds=high,
            stderr=file,
            cwd=proxy.hosts,
            env=os.environ | {"SNIPROXY_WORKERS": workers},
        )
    for number in (*high, *(number for _, number in stored)):
        os.close(number)
    wait_until(lambda: " adopted=30 lost=0" in log.read_text())
    both_ways(*pairs)
    both_ways(another := relayed(proxy, backend))
    close(*pairs, another)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 0
