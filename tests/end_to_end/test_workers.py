"""Several workers: they share the work, and the supervisor keeps them."""

import os
import pathlib
import re
import resource
import signal
import socket
from collections.abc import Callable, Sequence

import pytest

from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Proxy,
    children,
    lowest_free_descriptor,
    read_all,
    read_exactly,
    wait_for,
    wait_until,
)
from tests.hello import hello

HELLO = hello("a.example")
Start = Callable[..., Proxy]
Make = Callable[..., Backend]

pytestmark = pytest.mark.parametrize("workers", ["2"], indirect=True)


def sockets(pid: int) -> set[str]:
    """Name the sockets that a process has open, proc(5)."""
    found = set()
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(fd.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def workers_of(proxy: Proxy, clients: Sequence[socket.socket]) -> list[int]:
    """Find the workers that have the other ends of clients' connections.

    The kernel's table is read once for all: it may be long, with what others do on this machine.
    """
    port = proxy.listening.getsockname()[1]
    inodes: dict[int, str] = {}
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        local, remote = (int(words[at].rpartition(":")[2], 16) for at in (1, 2))
        if local == port and words[9] != "0":
            inodes[remote] = f"socket:[{words[9]}]"
    owners = {inode: pid for pid in children(proxy.process.pid) for inode in sockets(pid)}
    return [owners[inodes[client.getsockname()[1]]] for client in clients]


def relayed(proxy: Proxy, backend: Backend) -> tuple[socket.socket, socket.socket]:
    client = proxy.connect()
    client.sendall(HELLO)
    stream = backend.accept()
    assert read_exactly(stream, len(HELLO)) == HELLO
    return client, stream


def serves(proxy: Proxy, backend: Backend) -> None:
    client, stream = relayed(proxy, backend)
    stream.sendall(b"served")
    stream.close()
    assert read_all(client) == b"served"
    client.close()


def test_as_many_as_asked_for(start: Start, backend_of: Make) -> None:
    proxy = start()
    serves(proxy, backend_of(proxy.directory("a.example")))
    wait_until(lambda: len(children(proxy.process.pid)) == 2)
    assert "workers=2" in proxy.log


def test_as_many_as_cpus(start: Start, backend_of: Make) -> None:
    proxy = start(SNIPROXY_WORKERS="")
    serves(proxy, backend_of(proxy.directory("a.example")))
    count = int(re.findall(r"workers=(\d+)", proxy.log)[0])
    assert 1 <= count <= len(os.sched_getaffinity(0))
    wait_until(lambda: len(children(proxy.process.pid)) == (count if count > 1 else 0))


def test_a_bad_number_is_a_warning(start: Start, backend_of: Make) -> None:
    proxy = start(SNIPROXY_WORKERS="many")
    serves(proxy, backend_of(proxy.directory("a.example")))
    assert proxy.log.count("event=bad_setting") == 1
    assert "SNIPROXY_WORKERS=many" in proxy.log


def test_a_killed_worker_takes_only_its_own(start: Start, backend_of: Make) -> None:
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    pairs = [relayed(proxy, backend) for _ in range(64)]
    owners = workers_of(proxy, [client for client, _ in pairs])
    victim = owners[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(proxy, f"pid={victim} how=SIGKILL")
    for (client, stream), owner in zip(pairs, owners, strict=True):
        if owner == victim:
            # The kernel closes for it, by a reset where the client had sent something unread.
            assert client.recv(1) == b""
        else:
            stream.sendall(b"still here")
            assert read_exactly(client, 10) == b"still here"
        client.close()
        stream.close()
    wait_until(lambda: len(children(proxy.process.pid)) == 2)
    assert victim not in children(proxy.process.pid)
    for _ in range(20):
        serves(proxy, backend)


def test_a_worker_that_cannot_be_made_is_made_later(start: Start, backend_of: Make) -> None:
    """Without a descriptor for its channel: the others go on, and so does the supervisor."""
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    serves(proxy, backend)
    wait_until(lambda: len(children(proxy.process.pid)) == 2)
    # Once it tells something, it has closed what is the last worker's.
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for(proxy, "event=totals")
    _, hard = before = resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)
    # What the channel of the one that dies gives back is one of the two that it takes.
    limit = lowest_free_descriptor(proxy.process.pid)
    resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE, (limit, hard))
    os.kill(children(proxy.process.pid)[0], signal.SIGKILL)
    wait_for(proxy, "event=no_worker")
    serves(proxy, backend)
    resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE, before)
    wait_until(lambda: len(children(proxy.process.pid)) == 2)
    serves(proxy, backend)


def test_workers_end_when_the_supervisor_is_gone(start: Start, backend_of: Make) -> None:
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    client, stream = relayed(proxy, backend)
    wait_until(lambda: len(children(proxy.process.pid)) == 2)
    workers = children(proxy.process.pid)
    proxy.process.kill()
    proxy.process.wait(TIMEOUT)
    # None listens any more, and what was accepted goes on.
    wait_until(lambda: sum(os.path.exists(f"/proc/{pid}") for pid in workers) == 1)
    proxy.listening.close()
    stream.sendall(b"bye")
    stream.close()
    assert read_all(client) == b"bye"
    client.close()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))
    assert proxy.log.count("event=supervisor_gone") == 2


def test_totals_are_summed(start: Start, backend_of: Make) -> None:
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    for _ in range(40):
        client, stream = relayed(proxy, backend)
        stream.sendall(b"x" * 10)
        stream.close()
        read_all(client)
        client.close()
    for _ in range(5):
        read = proxy.ask(hello("nobody.example"))
        assert read.endswith(b"\x70")
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for(proxy, "event=totals")
    (line,) = (line for line in proxy.log.splitlines() if "event=totals" in line)
    assert "accepted=45 refused=5 " in line
    assert f"bytes_up={40 * len(HELLO)} bytes_down=400 refused_no_such_host=5" in line


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_the_signal_that_everybody_gets(start: Start, backend_of: Make, number: int) -> None:
    """systemd's KillMode=control-group: a worker must not take the second one for the last."""
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    client, stream = relayed(proxy, backend)
    for pid in [*children(proxy.process.pid), proxy.process.pid]:
        os.kill(pid, number)
    wait_for(proxy, "event=stop")
    stream.sendall(b"bye")
    stream.close()
    assert read_all(client) == b"bye"
    client.close()
    assert proxy.process.wait(TIMEOUT) == 0
    assert "worker_died" not in proxy.log
    assert proxy.log.count("event=exit accepted=1") == 1


def test_one_line_for_all_that_is_closed(start: Start, backend_of: Make) -> None:
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    pairs = [relayed(proxy, backend) for _ in range(40)]
    assert proxy.stop(signal.SIGINT) == 0
    assert proxy.log.count("event=connections_closed") == 1
    assert "event=connections_closed count=40 reason=SIGINT" in proxy.log
    for client, stream in pairs:
        client.close()
        stream.close()


def test_a_worker_that_hangs_is_killed_in_the_end(start: Start, backend_of: Make) -> None:
    proxy = start()
    serves(proxy, backend_of(proxy.directory("a.example")))
    hung = children(proxy.process.pid)[0]
    os.kill(hung, signal.SIGSTOP)
    assert proxy.stop(signal.SIGINT) == 0
    assert f"pid={hung} how=SIGKILL again_in_seconds=never" in proxy.log
