"""The manual: what it says to type is typed here. (Users and addresses: elsewhere.)"""

import contextlib
import functools
import pathlib
import re
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from backend import serve, server_context
from manual import block
from support import (
    BLOG,
    DROP_INS,
    EXECUTABLE,
    HERE,
    HOSTS,
    SHOP,
    TIMEOUT,
    Backend,
    Client,
    ask,
    clear_hosts,
    eventually,
    first_message,
    follow,
    journal,
    listening_inodes,
    main_pid,
    make_host,
    run,
    shown,
)

ACME = "https://localhost:14000/dir"

PEBBLE = """{"pebble": {
    "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
    "certificate": "/opt/inside/server.pem", "privateKey": "/opt/inside/server.pem",
    "httpPort": 1, "tlsPort": 443
}}"""
"""An authority for tests, to which only tls-alpn-01 can prove anything: nothing listens on 1."""


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Iterator[None]:
    """A certificate authority on localhost; its root becomes ``root.pem``."""
    configuration = tmp_path / "pebble.json"
    configuration.write_text(PEBBLE)
    pathlib.Path("/etc/hosts").write_text("127.0.0.1 localhost blog.example\n")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["pebble", "-config", configuration], stdout=log, stderr=log)
    eventually("the authority answers", answers)
    with Client("localhost", port=15000) as client:
        (HERE / "root.pem").write_bytes(client.fetch("/roots/0"))
    yield
    process.kill()
    process.wait()


def answers() -> bool:
    try:
        Client("localhost", port=15000).close()
    except ConnectionRefusedError:
        return False
    return True


def greets(name: str) -> bool:
    """Say whether a server has a certificate of the authority's."""
    try:
        Client(name, trusted="root.pem").close()
    except OSError:
        return False
    return True


def test_from_nothing_to_a_served_name(
    authority: None, proxy: None, tmp_path: pathlib.Path
) -> None:
    """nginx has port 80 meanwhile, as where certificates come by http-01."""
    assert shown("ActiveState", "nginx.service") == "active"
    run("systemctl", "disable", "--now", "sniproxy.socket")
    architecture = run("dpkg", "--print-architecture").strip()
    shutil.copy(HERE / "old.deb", tmp_path / f"sniproxy_1_{architecture}.deb")
    # A release has one for another machine, too, which conflicts with it.
    (tmp_path / "sniproxy_1_another.deb").touch()
    follow(block("start/served-name.md", "From nothing to a served name", 0), tmp_path)
    told = f"https_port 8443\n\tacme_ca {ACME}\n\tacme_ca_root {HERE}/ca.pem\n"
    try:
        commands = block("start/served-name.md", "From nothing to a served name", 1)
        output = follow(commands.replace("https_port 8443\n", told))
        assert "ok   blog.example  accepts as caddy" in output
        # It says that it has one before it has loaded it.
        eventually("a certificate", lambda: greets("blog.example"))
        with Client("blog.example", trusted="root.pem") as client:
            head, _, page = client.answer("/").partition(b"\r\n\r\n")
        assert page == b"Hello"
        assert b"alt-svc" not in head.lower()
    finally:
        run("systemctl", "stop", "caddy")


def test_one_server_for_many_names(
    proxy: None, hosts: pathlib.Path, backend_at: Callable[..., Backend]
) -> None:
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    follow(block("how-to/many-names.md", "Many names, and all others"))
    for name in (BLOG, SHOP, "localhost"):
        assert ask(name) == "the blog"
    make_host(SHOP)
    with pytest.raises(OSError, match=r"UNRECOGNIZED_NAME|unrecognized name"):
        ask(SHOP)


SITE = """server {{
    listen unix:/srv/sniproxy/{name}/tls-socket ssl;
    ssl_certificate {here}/server.pem;
    ssl_certificate_key {here}/server.pem;
    location / {{ return 200 "{name}"; }}
}}
"""


@pytest.fixture
def site(proxy: None) -> Iterator[Callable[[str], None]]:
    """Have nginx serve hosts, from its next start on."""
    path = pathlib.Path("/etc/nginx/sites-enabled/promise")

    def enable(name: str) -> None:
        make_host(name)
        path.write_text(SITE.format(name=name, here=HERE))

    yield enable
    path.unlink(missing_ok=True)
    run("systemctl", "disable", "--now", "nginx.socket", check=False)
    for name in ("nginx.socket", "nginx.service.d/socket.conf"):
        (DROP_INS / name).unlink(missing_ok=True)
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "nginx")


class Visitors:
    """Somebody who fetches a page again and again, each time on a connection of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.count = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                with Client(self._name) as client:
                    page = client.fetch("/")
            except OSError as error:
                page = repr(error).encode()
            self.count += 1
            if page != self._name.encode():
                self.failures.append(page.decode())

    def __enter__(self) -> "Visitors":
        self._thread.start()
        return self

    def more(self) -> None:
        aim = self.count + 5
        eventually("more answers", lambda: self.count >= aim)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def is_refusal(failure: str) -> bool:
    """Say whether a client was told that there is no such host."""
    return re.search("UNRECOGNIZED_NAME|unrecognized name", failure) is not None


def restarted(name: str, take_care: Callable[[], object]) -> list[str]:
    """Give what visitors of a host of nginx's have met while it was restarted, three times, with
    what the manual says; they are refused before that is done."""
    run("systemctl", "restart", "nginx")
    with Visitors(name) as visitors:
        visitors.more()
        run("systemctl", "stop", "nginx")
        eventually("a refusal", lambda: any(map(is_refusal, visitors.failures)))
        run("rm", "-f", HOSTS / name / "tls-socket")
        run("systemctl", "start", "nginx")
        take_care()
        visitors.more()
        visitors.failures.clear()
        for _ in range(3):
            # So often in so short a time nobody restarts anything.
            run("systemctl", "reset-failed", "nginx.service")
            run("systemctl", "stop", "nginx.service")
            run("systemctl", "start", "nginx.service")
            visitors.more()
    return visitors.failures


def test_clients_wait_at_a_socket_of_systemd_s(site: Callable[[str], None]) -> None:
    site(SHOP)
    commands = block("how-to/backend-restarts.md", "Backends that restart", 0)
    assert restarted(SHOP, lambda: follow(commands)) == []


def test_clients_wait_for_a_backend_that_restarts(site: Callable[[str], None]) -> None:
    """None is refused, though who was in the server's queue is lost."""
    site(BLOG)
    commands = block("how-to/backend-restarts.md", "Backends that restart", 1)
    assert not list(filter(is_refusal, restarted(BLOG, lambda: follow(commands))))


@pytest.fixture
def forwarder(proxy: None) -> Iterator[socket.socket]:
    """Give the server of a host behind the documented forwarder."""
    make_host(SHOP)
    with socket.create_server(("127.0.0.1", 8444), backlog=4096) as listening:
        listening.settimeout(TIMEOUT)
        follow(block("how-to/tcp-backends.md", "Backends that listen on TCP only"))
        yield listening
    run("systemctl", "disable", "--now", "shop.socket", "shop.service")
    for name in ("shop.socket", "shop.service"):
        (DROP_INS / name).unlink()


def test_a_backend_on_tcp(forwarder: socket.socket) -> None:
    context = server_context()

    def accept() -> None:
        for _ in range(4):
            stream, _ = forwarder.accept()
            serve(stream, b"the shop", context)

    thread = threading.Thread(target=accept)
    thread.start()
    assert [ask(SHOP) for _ in range(3)] == ["the shop"] * 3
    assert "ok" in run("sniproxy-check", "--user", "sniproxy", HOSTS)
    thread.join()
    pid = shown("MainPID", "shop.service")
    assert run("stat", "--format=%u", f"/proc/{pid}").strip() != "0"


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Let this process have many."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_two_thousand_connections_through_the_forwarder(
    forwarder: socket.socket, descriptors: None
) -> None:
    """All at the same time, each answered by the server when all are there."""
    message = first_message(SHOP)
    with contextlib.ExitStack() as stack:
        clients, served = [], []
        for number in range(2000):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", 443), TIMEOUT))
            # Each with a random of its own (RFC 8446 section 4.1.2), as hellos have.
            client.sendall(message[:11] + number.to_bytes(32) + message[43:])
            stream = stack.enter_context(forwarder.accept()[0])
            stream.settimeout(TIMEOUT)
            clients.append(client)
            served.append(stream)
        for stream in served:
            assert len(stream.recv(len(message), socket.MSG_WAITALL)) == len(message)
            stream.sendall(b"!")
        assert {client.recv(10) for client in clients} == {b"!"}


def test_another_port_first(proxy: None, backend_at: Callable[..., Backend]) -> None:
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    run("systemctl", "disable", "--now", "sniproxy.socket")
    with socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True):
        follow(block("how-to/moving.md", "Moving here", 0))
        with Client(BLOG, port=4443) as client:
            assert client.ask() == "the blog"
    follow(block("how-to/moving.md", "Moving here", 1))
    assert ask(BLOG) == "the blog"
    with pytest.raises(ConnectionRefusedError):
        Client(BLOG, port=4443)


def test_a_host_that_comes_from_haproxy(
    proxy: None, hosts: pathlib.Path, backend_at: Callable[..., Backend]
) -> None:
    commands = block("how-to/moving/haproxy.md", "From HAProxy", 1)
    follow(commands.replace("-o blog ", "-o alice ").replace("blog.example", BLOG))
    assert (hosts / BLOG / "send-proxy-v2").exists()
    assert (hosts / f"www.{BLOG}" / "send-proxy-v2").exists()


def test_hosts_that_come_from_others(hosts: pathlib.Path) -> None:
    for commands in (
        block("how-to/moving/snid.md", "From snid", 1),
        block("how-to/moving/sslh.md", "From sslh", 1),
        block("how-to/moving/traefik.md", "From Traefik", 1),
        block("how-to/moving/caddy.md", "From Caddy's layer4", 1),
        block("how-to/moving/envoy.md", "From Envoy", 1),
    ):
        follow(commands.replace("-o blog ", "-o alice "))
        assert (hosts / "blog.example").owner() == "alice"
        assert (hosts / "blog.example").group() == "sniproxy"
        shared = {(path.owner(), path.group()) for path in hosts.glob("_*")}
        assert shared == {("root", "sniproxy")}
        clear_hosts()


def test_snid_sends_hellos_where_the_manual_says(proxy: None) -> None:
    """Debian has it from 13 on. Its unit runs as it is in the manual, in the place of ours."""
    if 'VERSION_ID="12"' in pathlib.Path("/etc/os-release").read_text():
        return
    run("systemctl", "stop", "sniproxy.socket")
    folder, unit = pathlib.Path("/run/snid"), DROP_INS / "snid.service"
    folder.mkdir()
    unit.write_text(block("how-to/moving/snid.md", "From snid", 0))
    run("systemctl", "daemon-reload")
    try:
        run("systemctl", "start", "snid.service")
        eventually("it listens", listening_inodes)
        for asked, found in (
            ("blog.example", "blog.example"),
            ("one.shop.example", "_.shop.example"),
            (None, "blog.example"),
        ):
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(folder / found))
                server.listen()
                server.settimeout(TIMEOUT)
                with socket.create_connection(("127.0.0.1", 443), TIMEOUT) as client:
                    client.sendall(first_message(asked))
                    with server.accept()[0] as stream:
                        assert stream.recv(12, socket.MSG_WAITALL) == b"\r\n\r\n\0\r\nQUIT\n"
            (folder / found).unlink()
    finally:
        run("systemctl", "stop", "snid.service")
        unit.unlink()
        run("systemctl", "daemon-reload")
        shutil.rmtree(folder)


def memory(pid: int) -> int:
    """Give the bytes that a process and its children have for themselves."""
    pids = pid, *run("pgrep", "--parent", str(pid), check=False).split()
    texts = [pathlib.Path(f"/proc/{one}/smaps_rollup").read_text() for one in pids]
    sizes = re.findall(r"^Pss_Anon: +(\d+)", "".join(texts), re.MULTILINE)
    return sum(1024 * int(kb) for kb in sizes)


def flood(stream: socket.socket) -> None:
    """Write until nothing more is taken."""
    stream.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionError):
        while True:
            stream.send(bytes(1 << 20))


def test_limits_of_descriptors_and_memory(
    proxy: None, backend_at: Callable[..., Backend], descriptors: None
) -> None:
    """Clients and a backend that send all they can and read nothing, more than there may be."""
    limit, commands = 100, block("how-to/growing.md", "Growing")
    follow(commands.replace("LimitNOFILE=2000", f"LimitNOFILE={limit}").replace("=6G", "=400M"))
    assert shown("MemoryHigh") == str(400 << 20)
    backend_at(make_host(BLOG) / "tls-socket", "the blog")
    assert ask(BLOG) == "the blog"
    eventually("all workers are started", lambda: shown("ActiveState") == "active")
    started = f"_SYSTEMD_INVOCATION_ID={shown('InvocationID')}"
    eventually("the line", lambda: f"descriptors={limit}" in journal(started))
    pid = main_pid()
    before = memory(pid)
    workers = len(run("pgrep", "--parent", str(pid)).split())
    assert workers == 2
    message = first_message(SHOP)
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(socket.socket(socket.AF_UNIX))
        backend.bind(str(make_host(SHOP) / "tls-socket"))
        (HOSTS / SHOP / "tls-socket").chmod(0o666)
        backend.listen(4096)
        backend.setblocking(False)
        streams = []
        for _ in range(limit * workers):
            stream = socket.create_connection(("127.0.0.1", 443), TIMEOUT)
            streams.append(stack.enter_context(stream))
            stream.sendall(message)
            flood(stream)
            with contextlib.suppress(BlockingIOError):
                streams.append(stack.enter_context(backend.accept()[0]))
        for stream in streams * 3:
            flood(stream)
        assert memory(pid) - before < workers * limit << 20
    eventually("the port is free for others", lambda: served(BLOG))
    assert main_pid() == pid


def served(name: str) -> bool:
    try:
        return ask(name) == "the blog"
    except OSError:
        return False


def test_a_hosts_directory_without_room_or_rights_is_told(proxy: None) -> None:
    """What the table of symptoms says, and that it is over when there is room again."""
    manual = (HERE / "docs" / "how-to" / "trouble.md").read_text()
    size = f"size={2 * EXECUTABLE.stat().st_size}"
    for option, symptom in (
        ("size=64k", r"No space left on device"),
        (f"{size},ro", r"Read-only file system"),
        (f"{size},mode=700", r"status=200/CHDIR|status=6/ABRT"),
    ):
        run("mount", "-t", "tmpfs", "-o", f"mode=755,{option}", "none", HOSTS)
        try:
            last = journal("-u", "sniproxy", "-n", "1", "--show-cursor").rpartition("cursor: ")[2]
            log = functools.partial(journal, "-u", "sniproxy", f"--after-cursor={last.strip()}")
            run("systemctl", "start", "--no-block", "sniproxy.service")
            eventually(symptom, lambda s=symptom, log=log: re.search(s, log()))
            assert re.search(symptom, log())[0] in manual
            run("mount", "-o", f"remount,rw,mode=755,{size}", HOSTS)
            run("chmod", "755", HOSTS)
            eventually("it runs", lambda: shown("SubState") == "running")
        finally:
            run("systemctl", "stop", "sniproxy.service")
            run("umount", HOSTS)


def test_totals_by_signal(proxy: None) -> None:
    run("systemctl", "start", "sniproxy.service")
    eventually("it serves", lambda: "event=start" in journal("-u", "sniproxy", "-n", "3"))
    run("systemctl", "kill", "-s", "USR1", "--kill-whom=main", "sniproxy")
    eventually("the line", lambda: "event=totals" in journal("-u", "sniproxy", "-n", "3"))
    assert shown("ActiveState") == "active"
