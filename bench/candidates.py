"""The candidates: sniproxy in its forms, its peers from Debian's packages, and how each is started.

All listen on 127.0.0.1 with the same backlog, have TCP_NODELAY, keep no log of connections, and
are otherwise left at their defaults.
"""

import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable

from bench import account
from bench.works import HOST

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
BACKLOG = 4096
PATIENCE = 20.0
"""Seconds for a proxy to listen, and to leave."""

OURS = "sniproxy"
OURS_SOURCE = "sniproxy, source"
OURS_ALL = "sniproxy, all workers"
FLOOR = "floor"
NGINX = "nginx"
NGINX_TWO = "nginx, 2 workers"
HAPROXY = "HAProxy"
HAPROXY_SPLICE = "HAProxy, splice"
HAPROXY_TWO = "HAProxy, 2 threads"
SNIPROXY_C = "sniproxy 0.6 (C)"
SSLH = "sslh (TCP backend)"


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """Where candidates are started: what their configurations may speak of."""

    folder: pathlib.Path
    hosts: pathlib.Path
    socket: pathlib.Path
    tcp_port: int


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """A candidate that may be started.

    ``command`` is what to run. Where there is a ``configuration``, its path stands for %FILE%, and
    the candidate binds by itself; else it inherits the socket. ``several`` says that it may
    use all CPUs. ``most`` is how many connections it is asked to hold, ``share`` that it does that
    part of each work, being slow. ``forks`` says that its CPU can't be told.
    """

    name: str
    command: tuple[str, ...]
    configuration: Callable[[Site, int], str] | None = None
    several: bool = False
    most: int = 5_000
    share: int = 1
    forks: bool = False
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def ours(self) -> bool:
        return self.configuration is None and self.name != FLOOR


class Candidate:
    """A running proxy."""

    def __init__(self, offer: Offer, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.offer = offer
        self.name = offer.name
        self.port = port
        self.process = process

    def cpu(self) -> float:
        return account.cpu(self.process.pid)

    def memory(self) -> int:
        return account.memory(self.process.pid)

    def stop(self) -> None:
        """End it, and what it has started. A tracer passes no signal on, so what is below it is
        signalled; two signals mean at once."""
        members = account.family(self.process.pid)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            for one in members:
                try:
                    os.kill(one, number)
                except ProcessLookupError:
                    continue
            try:
                self.process.wait(PATIENCE if number != signal.SIGKILL else None)
            except subprocess.TimeoutExpired:
                continue
            return


def pinned(cpus: Iterable[int], command: Iterable[str]) -> list[str]:
    """Run on these CPUs, where there are several to share out."""
    if len(os.sched_getaffinity(0)) == 1:
        return list(command)
    return ["taskset", "-c", ",".join(map(str, cpus)), *command]


def cpus() -> tuple[int, int]:
    """Give the CPU of load and backend, and that of a proxy."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def start(offer: Offer, site: Site, tracer: Iterable[str] = ()) -> Candidate:
    """Start a candidate, under a tracer if there is one; return when it listens."""
    where = os.sched_getaffinity(0) if offer.several else cpus()[1:]
    command = [*tracer, *offer.command]
    if offer.configuration is None:
        kept = {name: value for name, value in os.environ.items() if "SNIPROXY" not in name}
        with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
            process = subprocess.Popen(
                pinned(where, command),
                stdin=listening,
                cwd=site.hosts,
                start_new_session=True,
                env=kept | {"SNIPROXY_LOG": "error"} | dict(offer.environment),
            )
            return Candidate(offer, process, listening.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = site.folder / f"{port}.conf"
    command = [word.replace("%FILE%", str(path)) for word in command]
    path.write_text(offer.configuration(site, port))
    process = subprocess.Popen(
        pinned(where, command),
        start_new_session=True,  # one of them signals its whole process group when it ends
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(site.folder / "peers.log").open("ab"),
    )
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Candidate(offer, process, port)
    said = (site.folder / "peers.log").read_text()[-500:].strip()
    message = f"{offer.name} left with {process.returncode} as soon as it was started: {said}"
    raise RuntimeError(message)


def _nginx(workers: int) -> Callable[[Site, int], str]:
    processes = f"master_process {'on' if workers > 1 else 'off'}; worker_processes {workers};"
    # Workers stay who started them: the backend's socket is in a directory of theirs alone.
    user = "user root;" if workers > 1 and os.geteuid() == 0 else ""
    return lambda site, port: (
        f"""
load_module {NGINX_MODULE}; daemon off; {processes} {user}
error_log stderr crit; pid {site.folder}/nginx-{port}.pid; worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
stream {{
    map $ssl_preread_server_name $backend {{ {HOST} unix:{site.socket}; }}
    server {{
        listen 127.0.0.1:{port} backlog={BACKLOG};
        ssl_preread on; tcp_nodelay on; proxy_pass $backend;
    }}
}}
"""
    )


def _haproxy(threads: int = 1, options: str = "") -> Callable[[Site, int], str]:
    return lambda site, port: (
        f"""
global
    nbthread {threads}
    maxconn 5000
defaults
    mode tcp
    timeout client 600s
    timeout server 600s
    timeout connect 5s
{options}
frontend front
    bind 127.0.0.1:{port} backlog {BACKLOG}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend back if {{ req.ssl_sni {HOST} }}
backend back
    server one unix@{site.socket}
"""
    )


def _sniproxy_c(site: Site, port: int) -> str:
    user = "user root" if os.geteuid() == 0 else ""
    return f"""
{user}
pidfile {site.folder}/sniproxy-{port}.pid
error_log {{
    filename /dev/stderr
    priority error
}}
listener 127.0.0.1:{port} {{
    protocol tls
    table hosts
    access_log {{
        filename /dev/null
        priority emergency
    }}
}}
table hosts {{
    {HOST} unix:{site.socket}
}}
"""


def _sslh(site: Site, port: int) -> str:
    return f"""
foreground: true; verbose: 0; inetd: false; numeric: true; timeout: 5;
listen: ( {{ host: "127.0.0.1"; port: "{port}"; }} );
protocols: (
    {{ name: "tls"; host: "127.0.0.1"; port: "{site.tcp_port}"; sni_hostnames: [ "{HOST}" ]; }}
);
"""


NGINX_MODULE = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def _packaged(name: str) -> str | None:
    """Find a daemon where Debian's packages put it: ours has the name of one of them."""
    return shutil.which(name, path="/usr/sbin")


def peers() -> tuple[list[Offer], list[str]]:
    """Give the peers that are installed, and the packages of those that are not."""
    found: list[Offer] = []
    missing: list[str] = []
    nginx = _packaged("nginx")
    if nginx and NGINX_MODULE.exists():
        found.append(Offer(NGINX, (nginx, "-c", "%FILE%"), _nginx(1)))
        found.append(Offer(NGINX_TWO, (nginx, "-c", "%FILE%"), _nginx(2), several=True))
    else:
        missing += ["nginx-light", "libnginx-mod-stream"]
    haproxy = _packaged("haproxy")
    if haproxy:
        run = (haproxy, "-db", "-q", "-f", "%FILE%")
        splice = "    option splice-request\n    option splice-response"
        found.append(Offer(HAPROXY, run, _haproxy()))
        found.append(Offer(HAPROXY_SPLICE, run, _haproxy(options=splice)))
        found.append(Offer(HAPROXY_TWO, run, _haproxy(threads=2), several=True))
    else:
        missing.append("haproxy")
    sniproxy = _packaged("sniproxy")
    if sniproxy:
        found.append(Offer(SNIPROXY_C, (sniproxy, "-f", "-c", "%FILE%"), _sniproxy_c, share=3))
    else:
        missing.append("sniproxy")
    # sslh-select 1.20 loses connections once there are several at a time. This one forks for each,
    # listens with a backlog of 50, which costs whole seconds when 64 come at once, and does not
    # wait for its children, so that their CPU is on nobody's account.
    sslh = _packaged("sslh")
    if sslh:
        found.append(Offer(SSLH, (sslh, "-F%FILE%"), _sslh, most=500, share=40, forks=True))
    else:
        missing.append("sslh")
    return found, missing


def ours(python: str, executable: str | None, added: Iterable[str]) -> list[Offer]:
    """Give the floor, sniproxy from source and as an executable, and those added by the user."""
    one = (("SNIPROXY_WORKERS", "1"),)
    path = (("PYTHONPATH", str(ROOT)),)
    source = (python, "-P", "-m", "sniproxy")
    found = [
        Offer(FLOOR, (str(BUILD / "floor"), HOST), most=50_000),
        Offer(OURS_SOURCE, source, environment=path + one, most=50_000),
    ]
    if executable:
        program = (str(pathlib.Path(executable).resolve()),)
        found.append(Offer(OURS, program, environment=one, most=50_000))
        found.append(Offer(OURS_ALL, program, several=True, most=50_000))
    else:
        found.append(Offer(OURS_ALL, source, environment=path, several=True, most=50_000))
    for text in added:
        name, _, command = text.partition("=")
        if not command:
            raise SystemExit(f"--add {text}: expected NAME=COMMAND")
        found.append(Offer(name, tuple(command.split()), environment=one, most=50_000))
    return found
