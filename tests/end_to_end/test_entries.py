"""Which entry of the hosts directory serves a client, against a second statement of the rules."""

import os
import pathlib
import random
import selectors
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.harness import (
    Backend,
    Proxy,
    directory_name,
    read_all,
    read_exactly,
    wait_for,
)
from tests.hello import extension, hello, message, records, server_name
from tests.plane import alert

Start = Callable[..., Proxy]
Make = Callable[..., Backend]

STRANGER = 4321
NOBODY = 65534
TREES = 40

HOSTS = ["a.example", "b.example", "a.b.example", "x.a.example", "a_.example", "localhost"]
MANY = ["_.example", "_.b.example", "_.a.example", "_default", "_nosni"]
UNNAMED = {
    "no extension": records(message(extension(10, b"\0\2\0\x1d"))),
    "no block": records(message(None)),
    "an empty list": records(message(server_name())),
    "no host name": records(message(server_name((9, b"a.example")))),
}

HASHED = (
    "import sys; from sniproxy import flavour; flavour.HASHED = True; "
    "from sniproxy.commands import sniproxy; sys.exit(sniproxy())"
)


class Listeners:
    """Backends in one thread: each answers who connects with its label, and hangs up."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, ours = socket.socketpair()
        self._selector.register(ours, selectors.EVENT_READ, None)
        self._ours = ours
        self._made: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)

    def listen(self, directory: pathlib.Path, label: str) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(directory / "tls-socket"))
        listening.listen(100)
        self._made.append(listening)
        self._selector.register(listening, selectors.EVENT_READ, label)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                assert isinstance(key.fileobj, socket.socket)
                stream, _ = key.fileobj.accept()
                with stream:
                    stream.settimeout(20)
                    stream.recv(65536)
                    stream.sendall(key.data.encode())

    def close(self) -> None:
        self._wake.close()
        self._thread.join()
        for one in (*self._made, self._ours):
            one.close()
        self._selector.close()


class Tree:
    """A hosts directory with entries in many states, made by chance."""

    def __init__(self, top: pathlib.Path, hashed: bool, chance: random.Random) -> None:
        self.top = top
        self.hashed = hashed
        self.chance = chance
        self.listeners = Listeners()
        self.far = top.parent / "far"
        self.far.mkdir(exist_ok=True)
        self._count = 0

    def fill(self) -> None:
        owned = ["stranger", "stranger's link", "link to a stranger's", "nobody's"]
        states = ["absent", "absent", "live", "live", "empty", "dead", "file", "dangling", "link"]
        if os.geteuid() == 0:
            states += owned
            os.chown(self.top, self.chance.choice([0, 0, STRANGER, NOBODY]), -1)
        for entry in HOSTS + MANY:
            self._make(self.top / directory_name(self.hashed, entry), entry, states)

    def _make(self, path: pathlib.Path, entry: str, states: list[str]) -> None:
        state = self.chance.choice(states)
        if state == "absent":
            return
        if state == "file":
            path.touch()
            return
        if state == "dangling":
            path.symlink_to("../far/nothing")
            return
        directory = path
        if "link" in state:
            self._count += 1
            directory = self.far / f"{self._count}"
            path.symlink_to(f"../far/{self._count}")
        directory.mkdir()
        if state == "dead":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(directory / "tls-socket"))
        elif state != "empty":
            self.listeners.listen(directory, entry)
        if state == "stranger's link":
            os.lchown(path, STRANGER, -1)
        elif state != "nobody's" and "stranger" in state:
            os.chown(directory, STRANGER, -1)
        elif state == "nobody's":
            os.chown(directory, NOBODY, -1)

    def expected(self, host: str) -> str | None:
        """Name the entry whose backend answers; None for a refusal. In other words than the code:
        the whole tree is looked at, and every entry judged."""
        owner = self.top.stat().st_uid
        trusted = {0} | ({owner} - {NOBODY})
        labels = host.split(".")
        order = [host, ".".join(["_", *labels[1:]]), "_default"] if host else ["_nosni"]
        if len(labels) == 1 and host:
            del order[1]
        for entry in order:
            path = self.top / directory_name(self.hashed, entry)
            if not path.is_dir():
                continue
            owners = {path.lstat().st_uid, path.stat().st_uid}
            if entry == host or owners <= trusted:
                return entry if self._alive(path) else None
        return None

    def _alive(self, path: pathlib.Path) -> bool:
        try:
            if not stat.S_ISSOCK((path / "tls-socket").stat().st_mode):
                return False
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path / "tls-socket"))
                probe.sendall(b"x")
                read_all(probe)
        except OSError:
            return False
        return True

    def empty(self) -> None:
        self.listeners.close()
        for top in (self.top, self.far):
            for path in sorted(top.rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink()


@pytest.fixture(params=["as built", "hashed"])
def any_flavour(
    request: pytest.FixtureRequest, command: list[str], hashed: bool, tmp_path: pathlib.Path
) -> Iterator[Proxy]:
    """Start a proxy of either flavour, where it is run from source."""
    if request.param == "hashed":
        if request.config.getoption("--sniproxy"):
            pytest.skip("not applicable: the executable of either flavour is tested as it is built")
        command, hashed = [sys.executable, "-c", HASHED], True
    (tmp_path / "hosts").mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        proxy = Proxy(command, tmp_path / "hosts", listening, {"SNIPROXY_WORKERS": "1"})
        proxy.hashed = hashed
        yield proxy
        proxy.stop(15, 15)


def ask(proxy: Proxy, wire: bytes) -> str | None:
    """Say who answers, or None for the alert unrecognized_name."""
    answer = proxy.ask(wire)
    if answer == alert(112):
        return None
    return answer.decode("ascii")


def test_random_directories(any_flavour: Proxy) -> None:
    chance = random.Random(20261126)
    served, refused = set(), 0
    for _ in range(TREES):
        tree = Tree(any_flavour.hosts, any_flavour.hashed, chance)
        tree.fill()
        tree.listeners.start()
        for host in HOSTS:
            expected = tree.expected(host)
            spelled = chance.choice([host, host.upper(), host + ".", host.title() + "."])
            assert ask(any_flavour, hello(spelled)) == expected, (host, os.listdir(tree.top))
            served.add((host, expected))
            refused += expected is None
        for what, wire in UNNAMED.items():
            assert ask(any_flavour, wire) == tree.expected(""), what
            served.add(("", tree.expected("")))
        for name in ("_default", "_nosni", "_.example", "*.example", "_a.example", "a.example.."):
            assert ask(any_flavour, hello(name)) is None
        tree.empty()
    # Each way to be served has come up, and many refusals.
    assert {entry for _, entry in served} == {None, *HOSTS, *MANY}
    assert refused > TREES


def authority(proxy: Proxy, backend: Backend, wire: bytes) -> bytes:
    """Give what a PROXY header of version 2 has behind the addresses of IPv4."""
    with proxy.connect() as client:
        client.sendall(wire)
        stream = backend.accept()
        start = read_exactly(stream, 16)
        rest = read_exactly(stream, int.from_bytes(start[14:16], "big"))
        assert read_exactly(stream, len(wire)) == wire
        stream.close()
        return rest[12:]


def test_the_header_carries_the_name_that_was_asked_for(proxy: Proxy, backend_of: Make) -> None:
    for entry, wire, expected in (
        ("_.example", hello("Any.Example."), b"\2\0\x0bany.example"),
        ("_default", hello("localhost"), b"\2\0\x09localhost"),
        ("_nosni", UNNAMED["no extension"], b""),
    ):
        directory = proxy.directory(entry)
        (directory / "send-proxy-v2").touch()
        assert authority(proxy, backend_of(directory), wire) == expected
    for name in ("any.example", "localhost", "none"):
        wait_for(proxy, f" host={name} end=")


@pytest.mark.parametrize("why", ["no_socket", "nothing_listens"])
def test_a_client_waits_for_a_backend_that_restarts(
    proxy: Proxy, backend_of: Make, why: str
) -> None:
    for entry, name in (("a.example", "a.example"), ("_default", "b.other")):
        directory = proxy.directory(entry)
        if why == "nothing_listens":
            backend_of(directory).close()  # its file stays
        assert ask(proxy, hello(name)) is None
        (directory / "wait-for-backend").touch()
        with proxy.connect() as client, proxy.connect() as another:
            for one in (client, another):
                one.sendall(hello(name))
            # Both are known to wait once a third, which was refused, has been answered.
            assert ask(proxy, UNNAMED["no block"]) is None
            (directory / "tls-socket").unlink(missing_ok=True)
            backend = backend_of(directory)
            for _ in range(2):
                assert read_exactly(backend.accept(), len(hello(name))) == hello(name)


ACME = extension(16, b"\0\x0b\x0aacme-tls/1")


def acme_socket(directory: pathlib.Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(directory / "acme-tls-socket"))
    listening.listen(10)
    listening.settimeout(20)
    return listening


@pytest.mark.parametrize("entry", ["a.example", "_.example", "_default"])
@pytest.mark.parametrize("cut", [None, 30, 100, -1], ids=str)
@pytest.mark.parametrize("size", [2**14, 40])
def test_a_certificate_authority_gets_a_socket_of_its_own(
    proxy: Proxy, backend_of: Make, entry: str, cut: int | None, size: int
) -> None:
    """Whatever cut the hello comes in, behind the name as well."""
    directory = proxy.directory(entry)
    backend = backend_of(directory)
    (directory / "send-proxy-v1").touch()
    name = server_name((0, b"a.example"))
    validation = records(message(name + extension(21, bytes(50)) + ACME), size)
    ordinary = records(message(name + extension(21, bytes(50))), size)
    with acme_socket(directory) as listening:
        for wire, accept in ((validation, listening.accept), (ordinary, None)):
            with proxy.connect() as client:
                client.sendall(wire[:cut])
                if cut is not None:
                    # It has been read when this one, which came later, has been answered.
                    assert ask(proxy, UNNAMED["no block"]) is None
                    client.sendall(wire[cut:])
                stream = accept()[0] if accept else backend.accept()
                with stream:
                    stream.settimeout(20)
                    line = read_exactly(stream, 11)
                    while not line.endswith(b"\r\n"):
                        line += read_exactly(stream, 1)
                    assert line.startswith(b"PROXY TCP4 ")
                    assert read_exactly(stream, len(wire)) == wire
    # Without the socket, as without the file, it is the server's.
    (directory / "acme-tls-socket").unlink()
    with proxy.connect() as client:
        client.sendall(validation)
        assert backend.accept().recv(6) == b"PROXY "


def test_what_follows_the_name_is_the_backends_to_judge(proxy: Proxy, backend_of: Make) -> None:
    """Also where the hello is waited for to its end: it goes on when it can't be a validation."""
    directory = proxy.directory("a.example")
    backend = backend_of(directory)
    wire = records(message(server_name((0, b"a.example")) + extension(21, bytes(500))), 100)
    with acme_socket(directory):
        for more in (b"\x15\3\3\0\2\2\x28", b"\x16\3\3\xff\xff", b"\x16\3\3\0\0"):
            with proxy.connect() as client:
                client.sendall(wire[:210] + more)
                assert read_exactly(backend.accept(), 210 + len(more)) == wire[:210] + more
        with proxy.connect() as client:
            client.sendall(wire[:250])
            client.shutdown(socket.SHUT_WR)
            assert read_all(backend.accept()) == wire[:250]
