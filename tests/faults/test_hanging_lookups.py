"""Owners of directories who keep the kernel's lock on them: each look-up there sleeps until they
let go, and whoever looks up sleeps with it. Where look-ups are isolated, that is their trouble."""

import os
import pathlib
import resource
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.conftest import tmp_path
from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Proxy,
    children,
    directory_name,
    read_exactly,
    state,
    wait_for,
    wait_until,
)
from tests.faults.harness import HOST, ask
from tests.faults.harness import Backend as Serving
from tests.faults.holding import Holder, why_impossible
from tests.faults.test_intruders import maze, open_to_all
from tests.hello import hello

__all__ = ["tmp_path"]  # a folder that nobody else walks through

INTERNAL_ERROR = b"\x15\3\3\0\2\2\x50"
UNRECOGNIZED_NAME = b"\x15\3\3\0\2\2\x70"
MALLORY, MARVIN = 54_001, 54_002
READY = 2
"""Resolvers of a proxy at rest: one at work, and one that waits for its turn."""

Start = Callable[..., Proxy]
Serve = Callable[..., Serving]
Make = Callable[..., Backend]
Hold = Callable[..., Holder]


@pytest.fixture
def hold(tmp_path: pathlib.Path) -> Iterator[Hold]:
    """Have a user hold a directory; at the end all let go."""
    why = why_impossible(tmp_path)
    if why:
        pytest.skip(why)
    holders: list[Holder] = []

    def begin(uid: int, directory: pathlib.Path) -> Holder:
        holders.append(Holder(uid, directory, tmp_path))
        return holders[-1]

    yield begin
    for holder in holders:
        holder.release()


@pytest.fixture
def isolated(start: Start, serve: Serve) -> Proxy:
    """A proxy that users can put hosts into, with an honest host."""
    proxy = start(SNIPROXY_ISOLATE="1", SNIPROXY_LOG="connections")
    open_to_all(proxy.hosts, 0o1777)
    serve(proxy.directory(HOST))
    ask(proxy)
    wait_until(lambda: len(resolvers(proxy)) == READY)
    return proxy


def warden(proxy: Proxy) -> int:
    """Give the process that has the resolvers: the only child that has children."""
    (found,) = (pid for pid in children(proxy.process.pid) if children(pid))
    return found


def resolvers(proxy: Proxy) -> list[int]:
    """List the resolver processes; none while there is no warden."""
    try:
        return children(warden(proxy))
    except (ValueError, OSError):
        return []


def host_of(proxy: Proxy, uid: int, name: str) -> pathlib.Path:
    """Make a user's host."""
    directory = proxy.directory(name)
    os.chown(directory, uid, uid)
    return directory


class Relayed:
    """A connection that is to notice nothing."""

    def __init__(self, proxy: Proxy, backend: Backend, name: str) -> None:
        wire = hello(name)
        self._client = proxy.connect()
        self._client.sendall(wire)
        self._stream = backend.accept()
        assert read_exactly(self._stream, len(wire)) == wire

    def goes_on(self) -> None:
        self.asks()
        self.is_answered()

    def asks(self) -> None:
        self._client.sendall(b"to the backend")

    def is_answered(self) -> None:
        assert read_exactly(self._stream, 14) == b"to the backend"
        self._stream.sendall(b"to the client")
        assert read_exactly(self._client, 13) == b"to the client"

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def relayed(isolated: Proxy, backend_of: Make) -> Iterator[Relayed]:
    backend = backend_of(isolated.directory("relayed.example"))
    one = Relayed(isolated, backend, "relayed.example")
    yield one
    one.goes_on()
    one.close()


def begin(proxy: Proxy, name: str) -> socket.socket:
    """Be a client of a host, without waiting for an answer."""
    client = proxy.connect()
    client.sendall(hello(name))
    return client


def refused(proxy: Proxy, name: str) -> None:
    with begin(proxy, name) as client:
        assert read_exactly(client, len(INTERNAL_ERROR)) == INTERNAL_ERROR


def serves(proxy: Proxy, backend: Backend, name: str) -> bool:
    """Say whether a host's client reaches its backend."""
    with begin(proxy, name) as client:
        readable, _, _ = select.select([client, backend.listening], [], [], TIMEOUT)
        if backend.listening not in readable:
            return False
        # Who was held may just have connected, for nobody.
        while True:
            with backend.accept() as stream:
                if stream.recv(1, socket.MSG_PEEK):
                    return read_exactly(stream, len(hello(name))) == hello(name)


def test_each_owner_who_holds_a_directory_costs_one_process(
    isolated: Proxy, relayed: Relayed, hold: Hold, backend_of: Make
) -> None:
    names = [f"{word}.example" for word in ("evil", "bad", "worse")]
    backends = {name: backend_of(host_of(isolated, MALLORY, name)) for name in names}
    held = hold(MALLORY, isolated.hosts / directory_name(isolated.hashed, "evil.example"))
    crowd = [begin(isolated, "evil.example") for _ in range(20)]
    for client in crowd:
        assert read_exactly(client, len(INTERNAL_ERROR)) == INTERNAL_ERROR
        client.close()
    for _ in range(20):
        ask(isolated)
    for name in names * 3:
        refused(isolated, name)
    relayed.goes_on()
    wait_until(lambda: len(resolvers(isolated)) == READY + 1)
    line = f"event=owner_hangs host=evil.example uid={MALLORY}"
    wait_for(isolated, line)
    wait_for(isolated, "end=refused:owner_hangs")

    backend_of(host_of(isolated, MARVIN, "other.example"))
    hold(MARVIN, isolated.hosts / directory_name(isolated.hashed, "other.example"))
    refused(isolated, "other.example")
    ask(isolated)
    wait_until(lambda: len(resolvers(isolated)) == READY + 2)

    held.release()
    wait_until(lambda: len(resolvers(isolated)) == READY + 1)
    wait_until(lambda: serves(isolated, backends["bad.example"], "bad.example"))
    wait_until(lambda: serves(isolated, backends["evil.example"], "evil.example"))
    refused(isolated, "other.example")


def test_the_hosts_directory_is_held(isolated: Proxy, relayed: Relayed, hold: Hold) -> None:
    """What was never reached can't be looked up then; that is all, and over when it is."""
    for _ in range(20):  # by each worker
        ask(isolated)
    held = hold(MALLORY, isolated.hosts)
    for number in range(3):
        refused(isolated, f"never-seen-{number}.example")
    wait_for(isolated, "event=hosts_directory_hangs")
    for _ in range(20):
        ask(isolated)
    wait_until(lambda: len(resolvers(isolated)) == READY + 1)
    relayed.goes_on()
    held.release()
    ask(isolated)
    wait_until(lambda: len(resolvers(isolated)) == READY)
    assert isolated.ask(hello("never-seen-0.example")) == UNRECOGNIZED_NAME


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_a_hosts_directory_is_held_by_the_end_of_a_host(
    isolated: Proxy, hold: Hold, backend_of: Make
) -> None:
    """rmdir(2) of a directory that is held waits for it, and has the hosts directory meanwhile,
    which its user can't even read. Then hosts that were reached are looked up, and for one that is
    no longer where it was its owner is to blame."""
    open_to_all(isolated.hosts, 0o1773)
    for name in ("evil.example", "moved.example"):
        backend = backend_of(host_of(isolated, MALLORY, name))
        assert serves(isolated, backend, name)
    moved = isolated.directory("moved.example")
    moved.rename(moved.with_name("elsewhere"))
    evil = isolated.directory("evil.example")
    held = hold(MALLORY, evil)
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(MALLORY)
            os.setuid(MALLORY)
            os.rmdir(evil)
        finally:
            os._exit(0)
    try:
        wait_until(lambda: state(pid) == "D")
        refused(isolated, "never-seen.example")
        ask(isolated)
        for _ in range(3):
            refused(isolated, "moved.example")
            ask(isolated)
        wait_for(isolated, f"event=owner_hangs host=moved.example uid={MALLORY}")
        wait_until(lambda: len(resolvers(isolated)) == READY + 2)
    finally:
        held.release()
        os.waitpid(pid, 0)
    wait_until(lambda: len(resolvers(isolated)) == READY)
    ask(isolated)
    assert isolated.ask(hello("never-seen.example")) == UNRECOGNIZED_NAME


@pytest.mark.parametrize("mode", [0o1773, 0o1771])
def test_a_hosts_directory_that_others_cannot_read(isolated: Proxy, hold: Hold, mode: int) -> None:
    """Nobody but its owner can hold it by reading it, though everybody, or a group, can make hosts
    in it."""
    open_to_all(isolated.hosts, mode)
    os.chown(isolated.hosts, 0, MARVIN)
    with pytest.raises(PermissionError):
        hold(MALLORY, isolated.hosts)
    ask(isolated)


def test_a_maze_of_links_is_soon_left(
    isolated: Proxy, serve: Serve, tmp_path: pathlib.Path
) -> None:
    """All wait for one process that looks up. Each look-up in a maze takes it milliseconds, and it
    is never asleep: so it is the sum that counts."""
    directory = host_of(isolated, MALLORY, "maze.example")
    serve(directory)
    for name in ("send-proxy-v1", "send-proxy-v2"):
        where = tmp_path / name
        where.mkdir()
        (directory / name).symlink_to(maze(where, f"{where}/nothing"))

    def is_left() -> bool:
        clients = [begin(isolated, "maze.example") for _ in range(50)]
        ask(isolated)
        for client in clients:
            client.close()
        return f"event=owner_slow host=maze.example uid={MALLORY}" in isolated.log

    wait_until(is_left)
    refused(isolated, "maze.example")
    ask(isolated)


def test_killed(isolated: Proxy, relayed: Relayed) -> None:
    """Resolvers, one after the other and both, and then their warden: others take their place."""
    for victims in ([0], [1], [0, 1]):
        wait_until(lambda: len(resolvers(isolated)) == READY)
        before = resolvers(isolated)
        for victim in victims:
            os.kill(before[victim], signal.SIGKILL)
        ask(isolated)
        wait_until(
            lambda before=before, victims=victims: (
                len(resolvers(isolated)) == READY
                and not {before[one] for one in victims} & set(resolvers(isolated))
            )
        )
    before = [warden(isolated)]
    os.kill(before[0], signal.SIGKILL)
    wait_for(isolated, "event=warden_died")
    ask(isolated)
    wait_until(lambda: len(resolvers(isolated)) == READY)
    for _ in range(10):
        ask(isolated)


def test_a_stop_does_not_wait_for_who_hangs(isolated: Proxy, hold: Hold) -> None:
    host_of(isolated, MALLORY, "evil.example")
    hold(MALLORY, isolated.hosts / directory_name(isolated.hashed, "evil.example"))
    refused(isolated, "evil.example")
    isolated.process.send_signal(signal.SIGTERM)
    assert isolated.process.wait(TIMEOUT) == 0
    assert "end=stopped" not in isolated.log


def test_a_renewal_in_the_middle_of_a_question(
    isolated: Proxy, relayed: Relayed, hold: Hold
) -> None:
    """The hello goes on to the next program, which asks anew; its wardens see the same."""
    host_of(isolated, MALLORY, "evil.example")
    hold(MALLORY, isolated.hosts / directory_name(isolated.hashed, "evil.example"))
    with begin(isolated, "evil.example") as client:
        isolated.process.send_signal(signal.SIGUSR2)
        wait_for(isolated, "adopted=")
        assert read_exactly(client, len(INTERNAL_ERROR)) == INTERNAL_ERROR
    relayed.goes_on()
    ask(isolated)


def test_no_process_can_be_had(command: list[str], tmp_path: pathlib.Path, serve: Serve) -> None:
    """RLIMIT_NPROC is of a user's processes; root has no such limit."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    hosts = tmp_path / "hosts"
    hosts.mkdir(mode=0o755)
    open_to_all(hosts, 0o755)
    # Who runs the source must be able to read it.
    rights = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    as_user = ["setpriv", "--reuid", "54003", "--regid", "54003", "--clear-groups", *rights]
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    more = ["prlimit", f"--nproc={'unlimited' if limit < 0 else limit}", "--pid"]
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        variables = {"SNIPROXY_WORKERS": "1", "SNIPROXY_ISOLATE": "1"}
        proxy = Proxy(
            [*as_user, *command],
            hosts,
            listening,
            variables,
            lambda: resource.setrlimit(resource.RLIMIT_NPROC, (2, limit)),
        )
        try:
            wait_for(proxy, "event=start")
            serve(proxy.directory(HOST))
            os.chmod(proxy.directory(HOST) / "tls-socket", 0o777)
            for _ in range(3):
                refused(proxy, HOST)
            wait_for(proxy, 'event=no_resolver error="Resource temporarily unavailable"')
            assert proxy.log.count("event=no_resolver") == 1
            (warden,) = children(proxy.process.pid)
            subprocess.run([*as_user, *more, str(warden)], check=True)
            wait_until(lambda: len(resolvers(proxy)) == READY)
            ask(proxy)
        finally:
            proxy.stop(signal.SIGINT)
