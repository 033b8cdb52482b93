"""The measurements: one function for each kind of figure, all on one ``Bench``.

The load generator and the backend share one CPU, the proxy has the other. What counts is the
proxy's own CPU time, from the kernel's account; the CPU of load and backend is noted beside it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bench import account, calls
from bench.candidates import BUILD, PATIENCE, Candidate, Offer, Site, cpus, pinned, start
from bench.works import CONNECTION, HOST, ROUND_TRIP, Work, client_hello
from sniproxy.parser.proxy_header import version_2

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT = 120.0
"""Seconds that one run of the load may take."""

IDLE = 2_000
"""Connections that are held to see what one costs in memory."""

SETTLED, RESTING = 1.0, 4.0
"""Seconds after which connections have nothing more to bring about, and in which that is looked
at."""

HELD = 20_000
"""Connections that are held to see whether others are slowed down."""

SHARING = 2, 4, 8
"""Numbers of workers, to see how they share."""

BURST = 200
BURSTS = 25
"""Connections that come at once, and how often for each worker: who of them has a CPU when is up to
the scheduler, each time anew."""

PAIRS = 9
"""Times that a connection is measured with a PROXY header, or isolated look-ups, and without."""

FIRST = Work("first connection", "r", 1, 1, 100, 1)
WARM_UP = 500
TRACED = 200
TRACED_BYTES = 16_000_000
"""Connections, and bytes each way, that are done under strace."""

ENDLESS = 1 << 50
MANY_TICKS = 20
"""Clock ticks of CPU from which on it can be said how many of them were in user mode."""

Figures = dict[str, float]


class WorkError(Exception):
    """A candidate has not done a work; the text says how that was seen."""


def build() -> None:
    """Compile what is written in C."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for program in ("load", "backend", "floor"):
        command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(BUILD / program)]
        subprocess.run([*command, str(HERE / f"{program}.c")], check=True)


def raise_descriptor_limit() -> int:
    """Allow ourselves, and all that we start, enough descriptors for HELD; give what holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wish in ((max(hard, 2 * HELD + 10_000),) * 2, (hard, hard)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, wish)
            return wish[0]
    return soft


class Bench:
    """The hosts directory with its backend, and the load."""

    def __init__(self, folder: pathlib.Path) -> None:
        hosts = folder / "hosts"
        self.limit = raise_descriptor_limit()
        self._where = {cpus()[0]}
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.site = Site(folder, hosts, hosts / HOST / "tls-socket", port)
        self.site.socket.parent.mkdir(parents=True)
        command = [str(BUILD / "backend"), str(self.site.socket), str(port)]
        self.backend = subprocess.Popen(pinned(self._where, command))
        while not self.site.socket.exists() and self.backend.poll() is None:
            os.sched_yield()

    def stop(self) -> None:
        self.backend.terminate()
        self.backend.wait(TIMEOUT)

    # The load.

    def _command(self, candidate: Candidate, work: Work) -> list[str]:
        hello = self.site.folder / f"hello-{work.hello}"
        hello.write_bytes(work.header + client_hello(work.hello))
        numbers = map(str, (work.count, work.flight, work.size))
        return [str(BUILD / "load"), str(candidate.port), str(hello), work.mode, *numbers]

    def _run(
        self, candidate: Candidate, work: Work, before: Sequence[str] = (), timeout: float = TIMEOUT
    ) -> Figures:
        command = [*before, *pinned(self._where, self._command(candidate, work))]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            message = f"{candidate.name}, {work.name}: not done after {timeout:.0f} s"
            raise WorkError(message) from None
        if self.backend.poll() is not None:
            raise SystemExit(f"the backend has left while {candidate.name} did {work.name}")
        if done.returncode or candidate.process.poll() is not None:
            message = f"{candidate.name}, {work.name}: {done.stderr.strip() or 'the proxy left'}"
            raise WorkError(message)
        figures: Figures = json.loads(done.stdout)
        return figures

    @contextlib.contextmanager
    def _meanwhile(self, candidate: Candidate, work: Work) -> "Iterator[subprocess.Popen[bytes]]":
        """Have a load running; it is ended at once afterwards."""
        with subprocess.Popen(
            pinned(self._where, self._command(candidate, work)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as load:
            try:
                yield load
            finally:
                load.kill()

    @contextlib.contextmanager
    def held(self, candidate: Candidate, count: int) -> Iterator[None]:
        """Hold so many idle connections; afterwards wait until the proxy has closed them."""
        before = account.descriptors(candidate.process.pid)
        with self._meanwhile(candidate, Work("idle", "i", count, 100, 0, count)) as load:
            if load.stdout is None or load.stdout.readline() != b"ready\n":
                message = f"{candidate.name}: {count} connections could not be held"
                raise WorkError(message)
            yield
        deadline = time.monotonic() + PATIENCE
        while account.descriptors(candidate.process.pid) > before + 10:
            if time.monotonic() > deadline:
                message = f"{candidate.name}: connections stayed open when their clients had left"
                raise WorkError(message)

    # The figures.

    def work(self, candidate: Candidate, work: Work) -> Figures:
        """Do one work: CPU of the proxy, how much of it in user mode, and CPU of load and backend;
        units a second; latencies in microseconds."""
        if candidate.offer.share > 1:
            work = work.less(candidate.offer.share)
        process = candidate.process.pid
        before, backend_before = candidate.cpu(), account.cpu(self.backend.pid)
        user_before = account.user(process)
        figures = self._run(candidate, work)
        per_unit = work.factor / work.units
        used = candidate.cpu() - before
        proxy = {"cpu": used * per_unit}
        if used > MANY_TICKS * account.TICK:
            proxy["user"] = (account.user(process) - user_before) * per_unit
        return ({} if candidate.offer.forks else proxy) | {
            "load": (account.cpu(self.backend.pid) - backend_before + figures["load"]) * per_unit,
            "rate": work.units / figures["seconds"],
            "p50": figures["p50"],
            "p99": figures["p99"],
        }

    def memory(self, offer: Offer) -> Figures:
        """Start a candidate alone: bytes at rest after some connections, and of an idle one."""
        count = min(IDLE, offer.most)
        with self.running(offer) as candidate:
            self._run(candidate, CONNECTION.less(CONNECTION.count // WARM_UP))
            rest = candidate.memory()
            with self.held(candidate, count):
                return {"rest": rest, "idle": (candidate.memory() - rest) / count}

    def idle(self, offer: Offer) -> Figures:
        """Start a candidate alone, and hold connections on which nothing happens: how often it is
        woken in a second, and the CPU microseconds of that."""
        with (
            self.running(offer) as candidate,
            self.held(candidate, min(IDLE, offer.most) // 2),
        ):
            time.sleep(SETTLED)
            process = candidate.process.pid
            before, cpu = account.switches(process), candidate.cpu()
            time.sleep(RESTING)
            return {
                "wake-ups": (account.switches(process) - before) / RESTING,
                "cpu": (candidate.cpu() - cpu) / RESTING * 1e6,
            }

    def worker(self, offer: Offer) -> Figures:
        """Start ours alone with two and with four workers: bytes of one worker more."""
        sizes = []
        for workers in ("2", "4"):
            with self.running(offer, (("SNIPROXY_WORKERS", workers),)) as candidate:
                self._run(candidate, CONNECTION.less(CONNECTION.count // WARM_UP))
                sizes.append(candidate.memory())
        return {"worker": (sizes[1] - sizes[0]) / 2}

    def accept_with_held(self, candidate: Candidate, work: Work) -> Figures:
        """Compare connections with none held and with many; also bytes of a held one."""
        count = min(HELD, (self.limit - 1_000) // 2)
        alone = self.work(candidate, work)
        before = candidate.memory()
        with self.held(candidate, count):
            memory = candidate.memory() - before
            among = self.work(candidate, work)
        return {
            "alone": alone["cpu"],
            "among": among["cpu"],
            "ratio": among["cpu"] / alone["cpu"],
            "held": count,
            "bytes": memory / count,
        }

    def neighbour(self, candidate: Candidate, less: int) -> Figures:
        """Time a neighbour's round trips while a bulk stream runs, downwards and upwards.

        Neighbour, backend and proxy go before the bulk stream and all else on the machine, where
        that is allowed, so that what is timed is the proxy and not the scheduler.
        """
        trips = Work("neighbour", "e", 1, 1, 3_000 // less, 1)
        important = [self.backend.pid, *account.family(candidate.process.pid)]
        first = ["chrt", "-f", "2"] if go_first(important, first=True) else []
        figures = {}
        try:
            for name, mode in (("down", "r"), ("up", "u")):
                bulk = Work(f"bulk stream {name}", mode, 1, 1, ENDLESS, 1)
                with self._meanwhile(candidate, bulk) as load:
                    idle = candidate.cpu()
                    while candidate.cpu() < idle + 0.05:
                        if load.poll() is not None:
                            message = f"{candidate.name}: the {bulk.name} has ended"
                            raise WorkError(message)
                    done = self._run(candidate, trips, first)
                figures[f"{name}, p50"] = done["p50"]
                figures[f"{name}, p99"] = done["p99"]
        finally:
            go_first(important, first=False)
        return figures

    def spread(self, candidate: Candidate, work: Work, workers: int) -> Figures:
        """Say how many times the connections of the idlest worker the busiest has got, as the
        backend has counted them."""
        return {"spread": self._spread(candidate, [work], workers)}

    def header(self, offer: Offer, less: int) -> Figures:
        """Start a candidate twice, the second time for balancers, and say what a PROXY header of
        version 2 in front of each hello costs: one after another, so that both have the same
        machine."""
        address = "192.0.2.1", 40000
        header = version_2(address, ("198.51.100.2", 443), "")
        return self._more(offer, less, "SNIPROXY_ACCEPT_PROXY", header)

    def isolated(self, offer: Offer, less: int) -> Figures:
        """The same of isolated look-ups, in processes of their own."""
        return self._more(offer, less, "SNIPROXY_ISOLATE")

    def _more(self, offer: Offer, less: int, setting: str, header: bytes = b"") -> Figures:
        work = dataclasses.replace(CONNECTION, count=CONNECTION.count // less)
        work = dataclasses.replace(work, units=work.count)
        behind = dataclasses.replace(work, header=header)
        first = dataclasses.replace(FIRST, header=header)
        differences = []
        with (
            self.running(offer, ((setting, "0"),)) as one,
            self.running(offer, ((setting, "1"),), first=first) as other,
        ):
            for _ in range(PAIRS):
                without = self.work(one, work)["cpu"]
                differences.append(self.work(other, behind)["cpu"] - without)
        return {"more": statistics.median(differences)}

    def sharing(self, offer: Offer, less: int) -> Figures:
        """Start a candidate alone, ours with several numbers of workers, and say the same of
        connections one at a time, of bursts, and again one at a time after a hand-over; for each
        number, and of all the worst.

        Load and backend are where there is room: who shared a CPU with both would rightly get less.
        """
        figures: Figures = {}
        with self._anywhere():
            for workers in SHARING if offer.ours else SHARING[:1]:
                alone = Work("one at a time", "r", 50 * workers, 1, 100, 50 * workers)
                burst = Work("burst", "r", BURST, BURST, 100, BURST)
                with self.running(offer, (("SNIPROXY_WORKERS", str(workers)),)) as one:
                    old = self._workers(one, workers, alone)
                    found = {
                        "light": self._spread(one, [alone], workers),
                        "burst": self._spread(one, [burst] * (BURSTS * workers // less), workers),
                    }
                    if offer.ours:
                        one.process.send_signal(signal.SIGUSR2)
                        self._workers(one, workers, alone, old)
                        found["handed over"] = self._spread(one, [alone], workers)
                for name, value in found.items():
                    figures[f"{workers}, {name}"] = value
                    figures[name] = max(value, figures.get(name, 0))
        return figures

    @contextlib.contextmanager
    def _anywhere(self) -> Iterator[None]:
        """Let load and backend use all CPUs."""
        before, self._where = self._where, os.sched_getaffinity(0)
        os.sched_setaffinity(self.backend.pid, self._where)
        try:
            yield
        finally:
            self._where = before
            os.sched_setaffinity(self.backend.pid, before)

    def _workers(
        self, candidate: Candidate, count: int, work: Work, old: Iterable[int] = ()
    ) -> list[int]:
        """Wait until all workers are there, and none of the ``old``, and have them do a work."""
        deadline = time.monotonic() + PATIENCE
        found: list[int] = []
        while len(found) != count or not set(found).isdisjoint(old):
            if time.monotonic() > deadline:
                message = f"{candidate.name}: there never were {count} workers"
                raise WorkError(message)
            found = account.family(candidate.process.pid)[1:]
        self._run(candidate, work)
        return found

    def _spread(self, candidate: Candidate, works: Sequence[Work], workers: int) -> float:
        self._counts()
        for work in works:
            self._run(candidate, work)
        counts = sorted(self._counts().values())
        return counts[-1] / counts[0] if len(counts) >= workers else float("inf")

    def _counts(self) -> Counter[int]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.site.socket))
            client.sendall(client_hello(337) + struct.pack("=QQ", ord("c"), 0))
            lines = client.makefile().read().split("\n")
        counts = Counter({int(a): int(b) for a, b in (line.split() for line in lines if line)})
        del counts[os.getpid()]
        return counts

    def system_calls(self, offer: Offer) -> dict[str, float | dict[str, float]]:
        """Count system calls: of a connection (alone, and 64 at a time), of a MB each way."""
        path = self.site.folder / "trace"
        path.unlink(missing_ok=True)
        with self.running(offer, tracer=[*calls.STRACE, str(path)]) as candidate:
            trace = calls.Trace(path)
            one = Work("connections, traced", "r", TRACED + 2, 1, 100, TRACED + 2)
            self._run(candidate, one)
            alone = calls.of_connections(trace.calls(), TRACED)
            many = Work("connections at a time, traced", "r", 2 * TRACED, 64, 100, TRACED)
            self._run(candidate, many)
            together = len(trace.calls()) / many.count
            of_a_megabyte = {}
            for name, mode in (("down", "r"), ("up", "u")):
                self._run(candidate, Work(f"{name}, traced", mode, 1, 1, TRACED_BYTES, 1))
                of_a_megabyte[name] = len(trace.calls()) / TRACED_BYTES * 1e6
        by_name = {name: count / TRACED for name, count in alone.most_common()}
        return {
            "alone": alone.total() / TRACED,
            "together": together,
            **of_a_megabyte,
            "by name": by_name,
        }

    @contextlib.contextmanager
    def running(
        self,
        offer: Offer,
        environment: tuple[tuple[str, str], ...] = (),
        tracer: Sequence[str] = (),
        first: Work = FIRST,
    ) -> Iterator[Candidate]:
        """Start a candidate, and wait until it serves."""
        changed = dataclasses.replace(offer, environment=offer.environment + environment)
        candidate = start(changed, self.site, tracer)
        try:
            self._run(candidate, first, timeout=20)
            yield candidate
        finally:
            candidate.stop()

    def warm_up(self, candidate: Candidate) -> None:
        self.work(candidate, CONNECTION.less())
        self.work(candidate, ROUND_TRIP.less())


def go_first(processes: Sequence[int], *, first: bool) -> bool:
    """Let processes go before all others, or no longer; say whether that was allowed."""
    policy, priority = (os.SCHED_FIFO, 1) if first else (os.SCHED_OTHER, 0)
    try:
        for one in processes:
            os.sched_setscheduler(one, policy, os.sched_param(priority))
    except OSError:
        return False
    return shutil.which("chrt") is not None
