"""Attacks from outside: a backend with a mind of its own, honest clients, and a look at what a
proxy holds before and after."""

import os
import pathlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from tests.end_to_end.harness import TIMEOUT, Proxy, memory, read_exactly
from tests.hello import hello

HOST = "a.example"
HELLO = hello(HOST)
SERVED = b"served"

PATIENCE = 30.0
"""Seconds until what must become true is taken never to."""

POOLED_PIPES = 32
"""Pipes that a proxy process may keep for the next upload."""


def eventually(
    true: Callable[[], bool], what: str | Callable[[], object], patience: float = PATIENCE
) -> None:
    """Look again and again until something is true."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(what() if callable(what) else what)
        time.sleep(0.01)


class Backend:
    """``tests.faults.backend`` in a process of its own, so that it can be stopped and killed."""

    def __init__(self, directory: pathlib.Path, *options: str) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "tests.faults.backend", str(directory), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        if self.process.stdout is not None:
            self.process.stdout.close()


def many_descriptors() -> None:
    """Raise the limit on descriptors as far as this user may; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, 100_000), max(hard, 100_000)))
    except ValueError:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ask(proxy: Proxy, wire: bytes = HELLO) -> float:
    """Be an honest client once; give the seconds that it took."""
    begin = time.monotonic()
    with proxy.connect() as client:
        client.sendall(wire)
        assert read_exactly(client, len(SERVED)) == SERVED, proxy.log
    return time.monotonic() - begin


def family(pid: int) -> list[int]:
    """Give a process and all of its descendants."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def descriptors(pid: int) -> Mapping[str, int]:
    """Count a process's descriptors by their kind."""
    counts: dict[str, int] = {"socket": 0, "pipe": 0, "other": 0}
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            kind = os.readlink(entry).partition(":")[0]
        except FileNotFoundError:
            continue
        counts[kind if kind in counts else "other"] += 1
    return counts


class Holdings:
    """What the processes of a proxy hold: processes, descriptors, memory."""

    def __init__(self, proxy: Proxy) -> None:
        self.processes = family(proxy.process.pid)
        self.descriptors = {pid: descriptors(pid) for pid in self.processes}
        self.memory = memory(proxy)

    def problem(self, before: "Holdings", growth: int) -> str:
        """Say what is left behind since ``before``; nothing if nothing is."""
        if len(self.processes) != len(before.processes):
            return f"processes: {before.processes} became {self.processes}"
        then, now = (
            {
                kind: sum(one[kind] for one in each.descriptors.values())
                for kind in ("socket", "other")
            }
            for each in (before, self)
        )
        if now != then:
            return f"descriptors: {then} became {now}"
        for pid, counts in self.descriptors.items():
            pipes = before.descriptors.get(pid, {}).get("pipe", 0)
            if counts["pipe"] > pipes + 2 * POOLED_PIPES:
                return f"pipes: {pipes} became {counts['pipe']}"
        if self.memory - before.memory > growth:
            return f"memory: {before.memory} bytes became {self.memory}"
        return ""


def at_rest(proxy: Proxy) -> Holdings:
    """Take stock once all workers are there and the last connection has gone: when nothing has
    changed for a while."""
    count = int(proxy.environment.get("SNIPROXY_WORKERS", "1"))
    all_of_them = 1 if count == 1 else count + 1
    if (os.environ | proxy.environment).get("SNIPROXY_ISOLATE") == "1":
        all_of_them += 3  # the warden and two resolvers
    eventually(lambda: len(family(proxy.process.pid)) == all_of_them, "not all started")
    holdings, same = Holdings(proxy), 0
    while same < 20:
        time.sleep(0.01)
        now = Holdings(proxy)
        same = same + 1 if now.descriptors == holdings.descriptors else 0
        holdings = now
    return holdings


def nothing_left(proxy: Proxy, before: Holdings, growth: int, patience: float = PATIENCE) -> None:
    """Wait until a proxy holds no more than before."""
    eventually(
        lambda: not Holdings(proxy).problem(before, growth),
        lambda: Holdings(proxy).problem(before, growth),
        patience,
    )


def crowd(proxy: Proxy, count: int, wire: bytes) -> Iterator[socket.socket]:
    """Connect many clients that each send the same first bytes."""
    for _ in range(count):
        client = proxy.connect()
        if wire:
            client.sendall(wire)
        yield client


def parent_of(pid: int) -> int:
    """Give the parent of a process, or 0 where there is no such process (or only its remains)."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[1])
