#!/usr/bin/env python3
"""Measure executables: ``python3 launcher/measure.py [FILE…] [--without MEASURE]…``.

For each: its size, the time from exec to the first byte relayed in a chroot that holds nothing
else, the memory resident when it is idle, and its CPU time per connection, one connection at a
time. The executables take turns, and the least of each figure is shown, since whatever else the
machine does can only add to it. ``--without`` builds one that lacks a measure and sets it beside
the others. Needs root, for the chroot.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import build
from chain.failure import BuildFailure
from chain.training import client_hello

HOST = "plain.example"
HELLO = client_hello(HOST)
ANSWER = b"x" * 100

ROUNDS = 11
CONNECTIONS = 2000
"""A round, for each executable."""

PATIENCE = 60.0
"""Seconds for any one step."""


@dataclass(slots=True)
class Figures:
    """What was measured of one executable, a figure for each round."""

    start: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    connection: list[float] = field(default_factory=list)


@contextlib.contextmanager
def running(executable: Path, jail: Path) -> Iterator[tuple[int, socket.socket, float]]:
    """Start ``executable`` alone in the root directory ``jail``; give its process, its listening
    socket and when it was started. One process does all the work, so that its account is whole."""
    copy = jail / "sniproxy"
    shutil.copyfile(executable, copy)
    copy.chmod(0o555)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        started = time.perf_counter()
        process = subprocess.Popen(
            ["/sniproxy"],
            stdin=listening,
            stderr=subprocess.DEVNULL,
            env={"SNIPROXY_WORKERS": "1"},
            preexec_fn=lambda: (os.chroot(jail), os.chdir("/")),  # noqa: PLW1509 - one thread
        )
        try:
            yield process.pid, listening, started
        finally:
            process.terminate()
            process.wait(PATIENCE)


def relay(address: tuple[str, int], backend: socket.socket) -> None:
    """Have one connection relayed: a hello up, an answer down, an orderly end."""
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(HELLO)
        stream, _ = backend.accept()
        with stream:
            stream.settimeout(PATIENCE)
            stream.recv(len(HELLO))
            stream.sendall(ANSWER)
        while client.recv(1 << 16):
            pass


def cpu_time(pid: int) -> float:
    """Give the seconds that a process has computed, from the kernel's account in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def resident(pid: int) -> float:
    """Give the megabytes of a process that are in memory, shared ones too."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("smaps_rollup without Rss")


def one_round(executable: Path, jail: Path, backend: socket.socket, figures: Figures) -> None:
    """Measure ``executable`` once; add to its ``figures``."""
    with running(executable, jail) as (pid, listening, started):
        address = listening.getsockname()
        with socket.create_connection(address, PATIENCE) as client:
            client.sendall(HELLO)
            stream, _ = backend.accept()
            with stream:
                stream.recv(1)
                figures.start.append((time.perf_counter() - started) * 1e3)
                stream.recv(len(HELLO))
        figures.memory.append(resident(pid))
        before = cpu_time(pid)
        for _ in range(CONNECTIONS):
            relay(address, backend)
        figures.connection.append((cpu_time(pid) - before) / CONNECTIONS * 1e6)


def measure(executables: dict[str, Path], rounds: int) -> dict[str, Figures]:
    """Measure all, in turn."""
    found = {name: Figures() for name in executables}
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as folder, contextlib.ExitStack() as stack:
        backend = stack.enter_context(socket.socket(socket.AF_UNIX))
        backend.settimeout(PATIENCE)
        jail = Path(folder)
        (jail / HOST).mkdir()
        backend.bind(str(jail / HOST / "tls-socket"))
        backend.listen(100)
        for _ in range(rounds):
            for name, executable in executables.items():
                one_round(executable, jail, backend, found[name])
    return found


def show(executables: dict[str, Path], found: dict[str, Figures]) -> None:
    """Print a table; the CPU time also as a ratio to the first line's."""
    first = min(next(iter(found.values())).connection)
    print(f"{'':32} {'MB':>6} {'ms to 1st byte':>15} {'MB idle':>8} {'us/connection':>14} ratio")
    for name, figures in found.items():
        connection = min(figures.connection)
        print(
            f"{name:32} {executables[name].stat().st_size / 1e6:6.2f}"
            f" {min(figures.start):15.1f} {min(figures.memory):8.1f}"
            f" {connection:14.1f} {connection / first:5.2f}"
        )


def main(arguments: Sequence[str]) -> int:
    """Build what is to be built, measure, show; give the exit status."""
    parser = argparse.ArgumentParser(prog="measure.py", description="Measure executables.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="(dist/sniproxy)")
    parser.add_argument("--without", action="append", choices=build.MEASURES, default=[])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    wanted = parser.parse_args(arguments)
    dist = build.ROOT / "dist"
    files = [file.absolute() for file in wanted.files] or [dist / "sniproxy"]
    executables = {str(file): file for file in files}
    try:
        for name in wanted.without:
            output = build.ROOT / "build" / f"without-{name}" / "sniproxy"
            build.make(output, hashed=False, without=frozenset({name}))
            executables[f"without {name}"] = output
    except BuildFailure as failure:
        print(f"measure.py: {failure}", file=sys.stderr)
        return 1
    show(executables, measure(executables, wanted.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
