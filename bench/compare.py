"""Compare sniproxy with its peers: the same work through each, in turn, several rounds.

What counts is the proxy's own CPU time per unit of work (user and system, from the kernel's
nanosecond account in /proc/PID/schedstat), as medians and as ratios to nginx. The load generator
and the backend check that every byte arrived.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"
HOST = "bench.example"
TIMEOUT = 120.0
"""Seconds that one run of the load may take."""


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work: what the load generator is asked for, and what a unit of it is."""

    name: str
    mode: str
    count: int
    flight: int
    size: int
    units: float
    unit: str
    hello: int = 337

    def quick(self) -> "Workload":
        """Do a tenth of it."""
        if self.count < 100:
            return dataclasses.replace(self, size=self.size // 10, units=self.units / 10)
        return dataclasses.replace(self, count=self.count // 10 or 1, units=self.units / 10)


GIGABYTE = 1_000_000_000
WORKLOADS = (
    Workload("connection", "r", 20_000, 64, 100, 20_000, "us/connection"),
    Workload("connection, 1.8 kB hello", "r", 20_000, 64, 100, 20_000, "us/connection", 1800),
    Workload("reply of 200 kB", "r", 5_000, 16, 200_000, 5_000, "us/reply"),
    Workload("download", "r", 2, 2, 2 * GIGABYTE, 4, "s/GB"),
    Workload("upload", "u", 2, 2, 2 * GIGABYTE, 4, "s/GB"),
    Workload("round trip", "e", 64, 64, 2_000, 128_000, "us/round trip"),
)


@dataclasses.dataclass(slots=True)
class Candidate:
    """A running proxy."""

    name: str
    process: subprocess.Popen[bytes]
    port: int

    def cpu(self) -> float:
        """CPU seconds so far of the process and all its descendants."""
        return sum(self._cpu_of(pid) for pid in descendants(self.process.pid)) / 1e9

    @staticmethod
    def _cpu_of(pid: int) -> int:
        total = 0
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total

    def memory(self) -> int:
        """Resident bytes of the process and its descendants, shared pages counted once."""
        total = 0
        for pid in descendants(self.process.pid):
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total


def descendants(pid: int) -> list[int]:
    """Give a process and all below it."""
    parents: dict[int, int] = {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                after_name = (folder / "stat").read_text().rpartition(")")[2]
            except OSError:
                continue
            parents[int(folder.name)] = int(after_name.split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def client_hello(size: int) -> bytes:
    """Build a hello for HOST of exactly ``size`` bytes, server_name last but one."""
    name = HOST.encode()
    server_name = struct.pack("!HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = b"\3\3" + bytes(32) + b"\x20" + bytes(32) + b"\0\x20" + b"\x13\1" * 16 + b"\1\0"
    padding = size - 9 - len(body) - 2 - len(server_name) - 8
    extensions = struct.pack("!HH", 51, padding) + bytes(padding) + server_name + b"\0\x17\0\0"
    body += struct.pack("!H", len(extensions)) + extensions
    return struct.pack("!BHHB", 22, 0x301, len(body) + 4, 1) + len(body).to_bytes(3, "big") + body


def build() -> None:
    """Compile the load generator and the backend."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for program in ("load", "backend", "floor"):
        command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(BUILD / program)]
        subprocess.run([*command, str(HERE / f"{program}.c")], check=True)


def pinned(cpu: int, command: list[str]) -> list[str]:
    """Run on one CPU, where there are two to share out."""
    return ["taskset", "-c", str(cpu), *command] if len(os.sched_getaffinity(0)) > 1 else command


class Bench:
    """The hosts directory with its backend, and the candidates before it."""

    def __init__(self, folder: pathlib.Path, python: str) -> None:
        self.folder = folder
        self.python = python
        self.hosts = folder / "hosts"
        (self.hosts / HOST).mkdir(parents=True)
        self.socket = self.hosts / HOST / "tls-socket"
        self.backend = subprocess.Popen(pinned(0, [str(BUILD / "backend"), str(self.socket)]))
        self.candidates: list[Candidate] = []
        self.wanted = re.compile("")

    def stop(self) -> None:
        for process in [*(one.process for one in self.candidates), self.backend]:
            process.terminate()
            process.wait(TIMEOUT)

    def start_sniproxy(self, name: str, command: list[str]) -> None:
        if not self.wanted.search(name):
            return
        listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "SNIPROXY_LOG": "error",
            "SNIPROXY_WORKERS": "1",
        }
        process = subprocess.Popen(
            pinned(1, command), stdin=listening, cwd=self.hosts, env=environment
        )
        self.candidates.append(Candidate(name, process, listening.getsockname()[1]))
        listening.close()

    def start_peer(self, name: str, command: list[str], text: str) -> None:
        """Start a proxy that binds by itself; ``text`` is its configuration with %PORT%."""
        if not self.wanted.search(name):
            return
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        configuration = self.folder / f"{name}.conf"
        configuration.write_text(text.replace("%PORT%", str(port)))
        process = subprocess.Popen(pinned(1, [*command, str(configuration)]))
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        if process.poll() is not None:
            raise SystemExit(f"{name} left with {process.returncode} as soon as it was started")
        self.candidates.append(Candidate(name, process, port))

    def start_all(self, executable: str | None) -> None:
        """Start every candidate that is installed; say which is not."""
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        module = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")
        if nginx and module.exists():
            text = f"""load_module {module}; daemon off; master_process off; error_log stderr crit;
            pid {self.folder}/nginx.pid; worker_rlimit_nofile 20000;
            events {{ worker_connections 20000; }}
            stream {{ map $ssl_preread_server_name $backend {{ {HOST} unix:{self.socket}; }}
            server {{ listen 127.0.0.1:%PORT% backlog=4096; ssl_preread on; tcp_nodelay on;
            proxy_pass $backend; }} }}"""
            self.start_peer("nginx", [nginx, "-p", str(self.folder), "-c"], text)
        else:
            print("nginx is missing: install nginx-light and libnginx-mod-stream")
        haproxy = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
        if haproxy:
            text = f"""global
    nbthread 1
    maxconn 5000
defaults
    mode tcp
    timeout client 60s
    timeout server 60s
    timeout connect 5s
frontend front
    bind 127.0.0.1:%PORT%
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend back if {{ req.ssl_sni {HOST} }}
backend back
    server one unix@{self.socket}
"""
            self.start_peer("haproxy", [haproxy, "-db", "-q", "-f"], text)
        else:
            print("haproxy is missing: install haproxy")
        self.start_sniproxy("floor", [str(BUILD / "floor"), HOST])
        self.start_sniproxy("sniproxy", [self.python, "-m", "sniproxy"])
        if executable:
            self.start_sniproxy("sniproxy, executable", [executable])

    def run(self, candidate: Candidate, work: Workload) -> dict[str, float]:
        """Do one piece of work through one candidate; give CPU per unit and latencies."""
        hello = self.folder / f"hello-{work.hello}"
        hello.write_bytes(client_hello(work.hello))
        command = [str(BUILD / "load"), str(candidate.port), str(hello), work.mode]
        command += [str(work.count), str(work.flight), str(work.size)]
        before = candidate.cpu()
        done = subprocess.run(
            pinned(0, command), check=False, capture_output=True, text=True, timeout=TIMEOUT
        )
        if done.returncode or candidate.process.poll() is not None:
            raise SystemExit(f"{candidate.name}, {work.name}: {done.stderr or 'the proxy left'}")
        factor = 1 if work.unit == "s/GB" else 1e6
        result: dict[str, float] = json.loads(done.stdout)
        result["cpu"] = (candidate.cpu() - before) / work.units * factor
        return result

    def idle(self, candidate: Candidate, count: int) -> float:
        """Give the bytes of memory that each of ``count`` idle connections takes."""
        hello = self.folder / "hello-337"
        hello.write_bytes(client_hello(337))
        command = [
            str(BUILD / "load"),
            str(candidate.port),
            str(hello),
            "i",
            str(count),
            "100",
            "0",
        ]
        before = candidate.memory()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
            assert load.stdout is not None
            ready = load.stdout.readline()
            if ready != b"ready\n":
                raise SystemExit(f"{candidate.name}: idle connections failed")
            return (candidate.memory() - before) / count


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> Iterator[str]:
    """Write the medians, and their ratios to nginx, as Markdown."""
    names = list(next(iter(results.values())))
    yield "| work | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for work, by_name in results.items():
        for figure in ("cpu", "p50", "p99"):
            if figure != "cpu" and not work.startswith("round trip"):
                continue
            medians = {n: statistics.median(run[figure] for run in by_name[n]) for n in names}
            base = medians.get("nginx")
            cells = [f"{m:.2f}" + (f" ({m / base:.2f})" if base else "") for m in medians.values()]
            yield f"| {work}, {figure} | " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare sniproxy with nginx and HAProxy.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", help="only works whose name this pattern finds")
    parser.add_argument("--candidates", default="", help="only candidates that this pattern finds")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the source")
    parser.add_argument("--executable", help="a sniproxy executable to compare as well")
    parser.add_argument("--output", default=str(HERE / "results"), help="where results are saved")
    options = parser.parse_args()
    build()
    works = [one.quick() if options.quick else one for one in WORKLOADS]
    works = [one for one in works if not options.only or re.search(options.only, one.name)]
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="sniproxy-bench-") as folder:
        bench = Bench(pathlib.Path(folder), options.python)
        try:
            bench.wanted = re.compile(options.candidates)
            bench.start_all(options.executable)
            for candidate in bench.candidates:
                for work in works:
                    bench.run(candidate, work.quick())
            for work in works:
                row = results[f"{work.name}, {work.unit}"] = {}
                for _ in range(options.rounds):
                    for candidate in bench.candidates:
                        row.setdefault(candidate.name, []).append(bench.run(candidate, work))
        finally:
            bench.stop()
    lines = list(table(results))
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.md").write_text("\n".join(lines) + "\n")
    (output / "results.json").write_text(json.dumps(results, indent=1))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
