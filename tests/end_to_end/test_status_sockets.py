"""Status sockets: by whichever way they come, they are kept by one process, and not for clients."""

import os
import pathlib
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.harness import (
    Backend,
    Running,
    children,
    directory_name,
    passed,
    read_exactly,
    wait_until,
)
from tests.hello import hello

HELLO = hello("a.example")
WAYS = ("beside_input", "among_others", "sniproxy_listen", "sniproxy_listen_several")


@pytest.fixture
def host(tmp_path: pathlib.Path, hashed: bool, backend_of: Callable[..., Backend]) -> Backend:
    directory = tmp_path / "hosts" / directory_name(hashed, "a.example")
    directory.mkdir(parents=True)
    return backend_of(directory)


def listening_at(path: pathlib.Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


@pytest.fixture(params=WAYS)
def running(
    request: pytest.FixtureRequest,
    command: list[str],
    workers: str,
    host: Backend,
    listen: pathlib.Path,
    tmp_path: pathlib.Path,
) -> Iterator[Running]:
    """Have a proxy that serves clients at ``clients`` and nobody else has that or ``status``."""
    status, clients = tmp_path / "status", tmp_path / "clients"
    sockets = []
    if request.param.startswith("sniproxy_listen"):
        more = [f"unix:{tmp_path}/more"] if request.param.endswith("several") else []
        options = ["--status", f"unix:{status}"]
        words = [listen, *options, f"unix:{clients}", *more, "--", *command]
    else:
        sockets = [listening_at(status), listening_at(clients)]
        names = [("status", sockets[0])]
        at_input = sockets[1]
        if request.param == "among_others":
            names, at_input = [*names, ("web", at_input)], None
        words = passed(command, names, at_input)
    variables = {"SNIPROXY_WORKERS": workers, "SNIPROXY_LOG": "connections"}
    with Running(tmp_path, *words, **variables) as program:
        for one in sockets:
            one.close()
        yield program


def connect(path: pathlib.Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(path))
    return client


def listening(path: pathlib.Path) -> list[str]:
    """Name the sockets that listen there by their inodes, unix(7)."""
    table = pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]
    rows = [line.split() for line in table]
    return [row[6] for row in rows if row[3] == "00010000" and row[7:] == [str(path)]]


def who_has(path: pathlib.Path, *processes: int) -> list[int]:
    """Name the processes that have the socket that listens there."""
    (inode,) = listening(path)
    return [
        pid
        for pid in processes
        if any(same_file(fd, inode) for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir())
    ]


def same_file(fd: pathlib.Path, inode: str) -> bool:
    try:
        return os.readlink(fd) == f"socket:[{inode}]"
    except FileNotFoundError:  # closed meanwhile
        return False


@pytest.mark.parametrize("anew", [False, True], ids=["started", "renewed"])
def test_it_is_kept_and_not_for_clients(
    running: Running, workers: str, host: Backend, tmp_path: pathlib.Path, anew: bool
) -> None:
    status, clients = tmp_path / "status", tmp_path / "clients"
    pid = running.process.pid
    if anew:
        running.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: running.log.count("event=start ") == 2)
    wait_until(lambda: len(children(pid)) == (int(workers) if workers != "1" else 0))
    shown = [line for line in running.log.splitlines() if "event=start " in line][-1]
    assert f" status=unix:{status} " in shown
    assert f" listen=unix:{clients}" in shown
    assert "status" not in shown.partition(" listen=")[2].partition(" ")[0]
    wait_until(lambda: who_has(status, pid, *children(pid)) == [pid])
    assert len(who_has(clients, pid, *children(pid))) == 1 + len(children(pid))
    with connect(clients) as client:
        client.sendall(HELLO)
        with host.accept() as stream:
            assert read_exactly(stream, len(HELLO)) == HELLO
            # A stop closes it, though the last connection is not over.
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not listening(status))
            stream.sendall(b"still here")
            assert read_exactly(client, 10) == b"still here"
    # Another signal would find it on its way out.
    assert running.process.wait(20) == 0
