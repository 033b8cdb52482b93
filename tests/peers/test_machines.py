"""Several machines, as the manual says to set them up: copies of the proxy behind a
balancer, each with a hosts directory of its own, clients and backends elsewhere.

The configurations are the manual's, taken from its blocks, with other paths. Addresses are those of
the manual as well, since each machine is a network namespace (``machines.py``). Clients compare
every byte, and the backend tells each of them, within TLS, from and to which address it has come.
"""

import contextlib
import errno
import pathlib
import random
import re
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest
import trustme

from tests.conftest import NOT_APPLICABLE
from tests.deployment.inside.manual import block
from tests.end_to_end.harness import TIMEOUT, directory_name, in_thread, wait_until
from tests.peers.machines import Machine, NotPermitted, Switches
from tests.peers.peers import Missing, need

HOST = "blog.example"
CLIENT = ("203.0.113.77", "2001:db8:113::77")
SERVICE = ("203.0.113.10", "2001:db8:113::10")
BALANCER = "198.51.100.1"
COPIES = {"one": "198.51.100.11", "two": "198.51.100.12"}
BACKEND = "198.51.100.21"

VISITORS = 4
MOST_VISITS = 4000
"""Bounds of the load: clients at a time, and connections altogether."""

SEVERAL = 20
"""Connections that tell that more come, or none."""

PIECE = 16384
MOST_PIECES = 12

ACTIVATE = "systemd-socket-activate"


class Echo(socketserver.ThreadingUnixStreamServer):
    """Sends back all that it gets, on a Unix socket."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(str(path), Echoing)
        self._thread = in_thread(self.serve_forever)

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Echoing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


class Visit:
    """A client's connection from end to end. It is to be made in the client's machine."""

    def __init__(self, trust: ssl.SSLContext, chance: random.Random, family: int = 0) -> None:
        self._chance = chance
        stream = socket.create_connection((SERVICE[family], 443), TIMEOUT)
        ours, theirs = stream.getsockname(), stream.getpeername()
        self.port: int = ours[1]
        kind = ("TCP4", "TCP6")[family]
        told = f"PROXY {kind} {ours[0]} {theirs[0]} {ours[1]} {theirs[1]}\r\n".encode()
        self._tls = trust.wrap_socket(
            stream, server_hostname=HOST, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        try:
            self._tls.do_handshake()
            assert self._read(len(told)) == told
        except BaseException:
            self.close()
            raise

    def exchange(self, pieces: int) -> None:
        """Send pieces and compare what comes back, with one piece under way meanwhile."""
        expected = b""
        for _ in range(pieces):
            piece = self._chance.randbytes(self._chance.randint(1, PIECE))
            self._tls.sendall(piece)
            if expected:
                assert self._read(len(expected)) == expected
            expected = piece
        assert self._read(len(expected)) == expected

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._tls.recv(size - len(data))
            assert chunk, f"ended after {len(data)} of {size} bytes: {bytes(data[:80])!r}"
            data += chunk
        return bytes(data)

    def close(self) -> None:
        self._tls.close()


class Site:
    """All machines, and what is the same for all tests: the client, the backend, the networks."""

    def __init__(self, folder: pathlib.Path, listen: pathlib.Path, hashed: bool) -> None:
        self.folder = folder
        self.listen = listen
        self.host_directory = directory_name(hashed, HOST)
        self._stack = contextlib.ExitStack()
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        self._switches = Switches("outer", "inner")
        self._stack.callback(self._switches.close)
        self.client = self.machine(outer=CLIENT)
        self.backend = self.machine(inner=(BACKEND,))
        authority = trustme.CA()
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)
        pem = self.folder / "server.pem"
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(pem))
        echo = self.folder / "echo"
        self._stack.callback(Echo(echo).close)
        configuration = self.folder / "backend.cfg"
        configuration.write_text(
            f"""defaults
    mode tcp
    timeout client 60s
    timeout server 60s
    timeout connect 5s
listen blog
    bind {BACKEND}:8443 ssl crt {pem} accept-proxy
    server echo unix@{echo} send-proxy
"""
        )
        haproxy = need("haproxy", "haproxy")
        self.backend.start([haproxy, "-db", "-q", "-f", str(configuration)], self.log("backend"))

    def machine(self, **networks: tuple[str, ...]) -> Machine:
        """Make a machine with addresses in networks; the caller may close it earlier."""
        machine = Machine()
        self._stack.callback(machine.close)
        for network, addresses in networks.items():
            self._switches.connect(
                machine, network, *(f"{one}/{64 if ':' in one else 24}" for one in addresses)
            )
        return machine

    def log(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.log"

    def visits(self, *families: int) -> list[Visit]:
        """Begin connections of clients', of IPv4 (0) or IPv6 (1)."""
        begun = []
        with self.client.entered():
            for family in families:
                begun.append(Visit(self.trust, random.Random(), family))
                self._stack.callback(begun[-1].close)
        return begun

    def close(self) -> None:
        self._stack.close()


class Copy:
    """A copy of the proxy on a machine of its own, with its hosts and their forwarders."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self.machine = site.machine(inner=(COPIES[name],))
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-", dir=site.folder))
        self.hosts = folder / "hosts"
        self.hosts.mkdir()
        self._log = folder / "log"

    def here(self, text: str) -> str:
        """Put this copy's places into what the manual says."""
        text = text.replace("/srv/sniproxy", str(self.hosts)).replace(" -g sniproxy", "")
        return text.replace(HOST, self._site.host_directory)

    def forward(self, units: str) -> None:
        """Listen where a pair of units says, and forward from there to the backend."""
        (instance,) = re.findall(r"enable --now backend@(\S+)\.socket", units)
        units = self.here(units).replace("%i", instance)
        (path,) = re.findall(r"^ListenStream=(.*)$", units, re.MULTILINE)
        (command,) = re.findall(r"^ExecStart=(.*)$", units, re.MULTILINE)
        activate = [need(ACTIVATE, "systemd-container"), f"--listen={path}"]
        self.machine.start([*activate, *command.split()], self._log.with_name("forwarder"))
        wait_until(pathlib.Path(path).exists)

    def begin(self, command: str) -> None:
        """Start the proxy by a command of the manual's."""
        words = self.here(command).replace("--user sniproxy ", "").split()
        assert words.pop(0) == "sniproxy-listen"
        environment = {"SNIPROXY_WORKERS": "2"}
        listen = [str(self._site.listen), *words]
        self.process = self.machine.start(listen, self._log, environment=environment)
        wait_until(lambda: self.starts == 1)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def starts(self) -> int:
        return self.log.count(" event=start ")

    @property
    def accepted(self) -> int:
        """Ask the proxy how many connections it has accepted."""
        before = self.log.count(" event=totals ")
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: self.log.count(" event=totals ") > before)
        return int(re.findall(r" event=totals .* accepted=(\d+)", self.log)[before])

    def ports(self) -> set[int]:
        """Name the clients that are connected to port 443, by their ports."""
        told = self.machine.run("ss", "-Htn", "state", "established", "sport = :443")
        return {int(line.split()[3].rpartition(":")[2]) for line in told.splitlines()}

    def renew(self) -> None:
        """Have the proxy go on as a new program, in its process."""
        before = self.starts
        self.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: self.starts > before)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(TIMEOUT) == 0, self.log


class Balancer:
    """HAProxy with the manual's configuration, on a machine of its own."""

    def __init__(
        self,
        site: Site,
        configuration: str,
        outer: tuple[str, ...] = SERVICE,
        inner: str = BALANCER,
    ) -> None:
        self._socket = pathlib.Path(tempfile.mkdtemp(dir=site.folder)) / "admin.sock"
        self.machine = site.machine(outer=outer, inner=(inner,))
        file = self._socket.with_name("haproxy.cfg")
        # This user may not have as many descriptors.
        file.write_text(self.here(configuration).replace("maxconn 20000", "maxconn 1000"))
        command = [need("haproxy", "haproxy"), "-db", "-q", "-f", str(file)]
        log = site.log("balancer")
        self.process = self.machine.start(command, log)
        wait_until(lambda: self._socket.exists() or self.process.poll() is not None)
        assert self._socket.exists(), log.read_text()

    def here(self, text: str) -> str:
        return text.replace("/run/haproxy/admin.sock", str(self._socket))

    def say(self, commands: str) -> None:
        """Run commands of the manual's."""
        need("socat", "socat")
        self.machine.run("timeout", str(TIMEOUT), "sh", "-euc", self.here(commands))

    def figures(self, server: str) -> dict[str, str]:
        """Give what HAProxy says of a server: ``stot`` are its connections since the start."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(TIMEOUT)
            stream.connect(str(self._socket))
            stream.sendall(b"show stat copies 4 -1\n")
            with stream.makefile() as lines:
                titles, *rows = [line.strip("# \n").split(",") for line in lines if "," in line]
        (row,) = [row for row in rows if row[1] == server]
        return dict(zip(titles, row, strict=True))

    def served(self, server: str) -> int:
        return int(self.figures(server)["stot"])


class Load:
    """Clients that come again and again until they are told to leave, or are many."""

    def __init__(self, site: Site, families: tuple[int, ...] = (0, 1)) -> None:
        self.visits = 0
        self._families = families
        self.failures: list[str] = []
        self._site = site
        self._lock = threading.Lock()
        self._leave = threading.Event()

    def __enter__(self) -> "Load":
        self._threads = [in_thread(self._work) for _ in range(VISITORS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        chance = random.Random()
        with self._site.client.entered():
            while not self._leave.is_set() and self.visits < MOST_VISITS:
                with self._lock:
                    self.visits += 1
                    number = self.visits
                try:
                    family = self._families[number % len(self._families)]
                    visit = Visit(self._site.trust, chance, family)
                    try:
                        visit.exchange(chance.randint(1, MOST_PIECES))
                    finally:
                        visit.close()
                except (OSError, AssertionError) as error:
                    self.failures.append(f"visit {number}: {error!r}")

    def until(self, true: Callable[[], bool]) -> None:
        """Go on until something is true, or a client has met a failure."""
        wait_until(lambda: bool(self.failures) or true())
        assert not self.failures
        assert self.visits < MOST_VISITS


def go_on(visits: list[Visit]) -> None:
    for visit in visits:
        visit.exchange(2)


def close(visits: list[Visit]) -> None:
    for visit in visits:
        visit.close()


@pytest.fixture(scope="module")
def listen(request: pytest.FixtureRequest, command: list[str]) -> Iterator[pathlib.Path]:
    """Give sniproxy-listen as a file, with the sniproxy that it runs beside it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sniproxy-"))
    executable = bool(request.config.getoption("--sniproxy"))
    for name in ("sniproxy", "sniproxy-listen"):
        if executable:
            (folder / name).symlink_to(pathlib.Path(command[0]).resolve())
        else:
            program = "import sys; from sniproxy.commands import main; sys.exit(main())"
            (folder / name).write_text(f"#!{sys.executable} -P\n{program}\n")
            (folder / name).chmod(0o755)
    yield folder / "sniproxy-listen"
    shutil.rmtree(folder)


@pytest.fixture
def site(listen: pathlib.Path, hashed: bool) -> Iterator[Site]:
    # A short name: an address of a Unix socket has 107 bytes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sniproxy-"))
    try:
        made = Site(folder, listen, hashed)
    except (Missing, NotPermitted) as missing:
        shutil.rmtree(folder)
        pytest.skip(str(missing))
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture
def copies(site: Site) -> dict[str, Copy]:
    """Have two copies with their hosts, which do not run yet."""
    made = {name: Copy(site, name) for name in COPIES}
    one = made["one"]
    hosts = one.here(block("how-to/machines.md", "Two machines behind HAProxy", 1))
    subprocess.run(["sh", "-euc", hosts], check=True)
    fill(made["two"], one, block("how-to/machines.md", "Two machines behind HAProxy", 3))
    for copy in made.values():
        try:
            copy.forward(block("how-to/machines.md", "Two machines behind HAProxy", 2))
        except Missing as missing:
            pytest.skip(str(missing))
    return made


def fill(copy: Copy, source: Copy, command: str) -> None:
    """Give a copy the hosts of another, as the manual does."""
    try:
        need("rsync", "rsync")
    except Missing as missing:
        pytest.skip(str(missing))
    (copy.hosts / ".sockets").mkdir(exist_ok=True)
    command = source.here(command.replace("two:/srv/sniproxy", str(copy.hosts)))
    subprocess.run(["sh", "-euc", command], check=True)


def test_copies_behind_haproxy_are_drained_replaced_and_renewed(
    site: Site, copies: dict[str, Copy]
) -> None:
    command = block("how-to/balancers.md", "The header without systemd")
    for copy in copies.values():
        copy.begin(command)
    balancer = Balancer(site, block("how-to/machines.md", "Two machines behind HAProxy", 0))
    one, two = copies["one"], copies["two"]

    def more(server: str) -> Callable[[], bool]:
        aim = balancer.served(server) + SEVERAL
        return lambda: balancer.served(server) >= aim

    with Load(site) as load:
        for name in COPIES:
            load.until(more(name))
        before = site.visits(0, 1, 0, 1, 0, 1)
        assert all(int(balancer.figures(name)["scur"]) for name in COPIES)

        # One is taken out: it gets nobody new, and who is there stays as long as he likes.
        balancer.say(block("how-to/machines.md", "To take a copy out", 0))
        served = balancer.served("one")
        load.until(more("two"))
        go_on(before)
        assert balancer.served("one") == served
        close(before)
        balancer.say(block("how-to/machines.md", "To take a copy out", 1))
        one.stop()
        assert " lost" not in one.log
        one.machine.close()

        # Meanwhile the other is renewed under load, again and again, with connections that stay.
        staying = site.visits(0, 1, 0, 1, 0, 1)
        for _ in range(3):
            go_on(staying)
            two.renew()
            assert re.search(r" adopted=\d+ lost=0$", two.log.splitlines()[-1])
            go_on(staying)
            load.until(more("two"))

        # Another machine comes in its place, with the hosts of the one that is left.
        one = Copy(site, "one")
        fill(one, two, block("how-to/machines.md", "Two machines behind HAProxy", 3))
        one.forward(block("how-to/machines.md", "Two machines behind HAProxy", 2))
        one.begin(command)
        balancer.say(block("how-to/machines.md", "To take a copy out", 2))
        load.until(lambda: balancer.figures("one")["status"] == "UP")
        load.until(more("one"))
        go_on(staying)
        close(staying)

        # The other is stopped without a word to the balancer.
        two.stop()
        load.until(more("one"))
        load.until(lambda: balancer.figures("two")["status"] == "DOWN")
        load.until(more("one"))
    assert not load.failures
    one.stop()
    for copy in (*copies.values(), one):
        assert "level=warning" not in copy.log
        assert "refused" not in copy.log


def without_header(command: str) -> str:
    """Make of the manual's command one for a port that clients come to as they are."""
    return command.replace("--proxy ", "").replace(":8443", ":443")


def test_only_the_balancers_reach_the_port(site: Site, copies: dict[str, Copy]) -> None:
    one = copies["one"]
    one.begin(block("how-to/balancers.md", "The header without systemd"))
    try:
        nft = need("nft", "nftables")
    except Missing as missing:
        pytest.skip(str(missing))
    one.machine.run(nft, "-f", "-", text=block("how-to/balancers.md", "Only from the balancers"))
    for address, may in ((BALANCER, True), (BACKEND, False), ("198.51.100.2", True)):
        machine = site.backend if address == BACKEND else site.machine(inner=(address,))
        with machine.entered(), socket.socket() as client:
            client.settimeout(TIMEOUT)
            assert client.connect_ex((COPIES["one"], 8443)) == (0 if may else errno.ECONNREFUSED)


def test_a_second_balancer_takes_over(site: Site, copies: dict[str, Copy]) -> None:
    for copy in copies.values():
        copy.begin(block("how-to/balancers.md", "The header without systemd"))
    configuration = block("how-to/machines.md", "Two machines behind HAProxy", 0)
    balancers = [
        Balancer(site, configuration, outer=(f"203.0.113.{number}",), inner=f"198.51.100.{number}")
        for number in (1, 2)
    ]
    try:
        keepalived = need("keepalived", "keepalived")
    except Missing as missing:
        pytest.skip(str(missing))
    for number, balancer in enumerate(balancers):
        file = site.folder / f"keepalived{number}.conf"
        file.write_text(balancer.here(block("how-to/machines.md", "A second balancer")))
        pids = [f"--{kind}={site.folder}/{kind}{number}" for kind in ("pid", "vrrp_pid")]
        options = ["--dont-fork", "--log-console", "--vrrp", f"--use-file={file}", *pids]
        balancer.machine.start([keepalived, *options], site.log("keepalived"))

    def has_it(balancer: Balancer) -> bool:
        shown = balancer.machine.run("ip", "-o", "address", "show", "dev", "outer")
        return all(f" {address}/" in shown for address in SERVICE)

    wait_until(lambda: any(map(has_it, balancers)))
    (first,) = filter(has_it, balancers)
    (second,) = (one for one in balancers if one is not first)

    def is_served() -> bool:
        try:
            visits = site.visits(0, 1)
        except OSError:
            return False
        go_on(visits)
        close(visits)
        return True

    wait_until(is_served)
    first.process.terminate()
    wait_until(lambda: has_it(second) and not has_it(first))
    wait_until(is_served)


@pytest.fixture
def router(site: Site, copies: dict[str, Copy]) -> Machine:
    """Have a machine in front of copies that run, have the address, and expect no header. Another
    one is their way out."""
    machine = site.machine(outer=("203.0.113.1",), inner=(BALANCER,))
    out = site.machine(outer=("203.0.113.254",), inner=("198.51.100.254",))
    for one in (machine, out):
        one.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    site.client.run("ip", "route", "add", f"{SERVICE[0]}/32", "via", "203.0.113.1")
    for copy in copies.values():
        copy.machine.run("ip", "route", "add", "default", "via", "198.51.100.254")
        copy.machine.run("sh", "-euc", block("how-to/machines.md", "Equal-cost routes", 1))
        copy.begin(without_header(block("how-to/balancers.md", "The header without systemd")))
    return machine


def each_more(copies: dict[str, Copy]) -> Callable[[], bool]:
    aims = {name: copy.accepted + SEVERAL for name, copy in copies.items()}
    return lambda: all(copies[name].accepted >= aim for name, aim in aims.items())


def test_equal_cost_routes_keep_addresses(
    site: Site, copies: dict[str, Copy], router: Machine
) -> None:
    router.run("sh", "-euc", block("how-to/machines.md", "Equal-cost routes", 0))
    with Load(site, families=(0,)) as load:
        load.until(each_more(copies))
    visits = site.visits(*[0] * SEVERAL)
    lost, staying = (
        [visit for visit in visits if visit.port in copies[name].ports()] for name in COPIES
    )
    assert lost
    assert staying
    assert len(lost) + len(staying) == SEVERAL
    leave = block("how-to/machines.md", "Equal-cost routes", 2)
    router.run("sh", "-euc", leave)
    for visit in lost:
        with pytest.raises(OSError):
            visit.exchange(2)
        visit.close()
    go_on(staying)
    with Load(site, families=(0,)) as load:
        load.until(each_more({"two": copies["two"]}))
    # It comes back, and takes nobody's connection.
    router.run("sh", "-euc", leave.replace("group 12 ", "group 11/12 "))
    go_on(staying)
    close(staying)


def test_ipvs_keeps_addresses_and_connections(
    site: Site, copies: dict[str, Copy], router: Machine
) -> None:
    try:
        ipvsadm = need("ipvsadm", "ipvsadm")
        router.run(ipvsadm, "-L", "-n")
    except Missing as missing:
        pytest.skip(str(missing))
    except AssertionError as error:
        problem = str(error).partition("\n")[0]
        pytest.skip(f"{NOT_APPLICABLE}this kernel has no ip_vs for a namespace: {problem}")
    router.run("ip", "address", "add", f"{SERVICE[0]}/32", "dev", "lo")
    router.run("sh", "-euc", block("how-to/machines.md", "IPVS", 0))
    with Load(site, families=(0,)) as load:
        load.until(each_more(copies))
        staying = site.visits(*[0] * SEVERAL)
        router.run("sh", "-euc", block("how-to/machines.md", "IPVS", 1))
        served = copies["one"].accepted
        load.until(each_more({"two": copies["two"]}))
        assert copies["one"].accepted == served
        go_on(staying)
        close(staying)
    assert not load.failures
