"""From a host name to a connected backend, in real directories."""

import array
import errno
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from sniproxy.parser.alert import Alert
from sniproxy.resolver.hosts import (
    DESCRIPTORS_EXHAUSTED,
    SUN_PATH,
    Hosts,
    NoHostsDirectory,
    can_refuse_descriptors,
)
from tests.end_to_end.harness import Backend
from tests.processes import forbid, in_child


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    made: list[Backend] = []
    yield made
    for backend in made:
        backend.close()


def make(backends: list[Backend], name: str, backlog: int = 10) -> Backend:
    path = pathlib.Path(name)
    path.mkdir()
    backends.append(Backend(path, backlog))
    return backends[-1]


def connect(hosts: Hosts, name: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        hosts.connect(name, stream)
    except OSError:
        stream.close()
        raise
    return stream


def reached(hosts: Hosts, name: str, backend: Backend) -> bool:
    with connect(hosts, name) as stream:
        stream.send(name.encode())
        return backend.accept().recv(1000) == name.encode()


@pytest.mark.parametrize("length", [1, SUN_PATH - 12, SUN_PATH - 11, SUN_PATH - 10, 200, 254])
def test_names_up_to_and_beyond_an_address(
    hosts: Hosts, backends: list[Backend], length: int
) -> None:
    backend = make(backends, "a" * length)
    here = os.stat(".")
    assert reached(hosts, "a" * length, backend)
    assert os.path.samestat(os.stat("."), here)


def test_it_comes_back_from_where_a_link_led(
    hosts: Hosts, backends: list[Backend], tmp_path: pathlib.Path
) -> None:
    far = tmp_path / "far" / "away"
    far.parent.mkdir()
    backend = make(backends, str(far))
    long = "b" * 200
    os.symlink(far, long)
    here = os.stat(".")
    assert reached(hosts, long, backend)
    assert os.path.samestat(os.stat("."), here)
    # And where the connect fails.
    backend.close()
    with pytest.raises(ConnectionRefusedError):
        connect(hosts, long)
    assert os.path.samestat(os.stat("."), here)


def test_it_is_the_directory_as_opened(
    hosts: Hosts, backends: list[Backend], tmp_path: pathlib.Path
) -> None:
    """It may be renamed, and another one put in its place."""
    short, long = make(backends, "a.example"), make(backends, "b" * 200)
    (tmp_path / "hosts").rename(tmp_path / "renamed")
    (tmp_path / "hosts").mkdir()
    for _ in range(2):
        assert reached(hosts, "b" * 200, long)
        assert reached(hosts, "a.example", short)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
def test_a_look_up_from_elsewhere_never_happens(
    hosts: Hosts, backends: list[Backend], tmp_path: pathlib.Path
) -> None:
    """Where the right to come back was taken away, look-ups fail until it is given again."""
    long, top = "b" * 200, tmp_path / "hosts"
    backend = make(backends, "a.example")
    (top / long).mkdir()
    backends.append(Backend(top / long))
    (top / long / "a.example").mkdir()
    stray = Backend(top / long / "a.example")
    backends.append(stray)
    for parent in top.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o111)
    for socket_path in top.glob("**/tls-socket"):
        socket_path.chmod(0o777)

    class Closing(socket.socket):
        """In the time that its connect takes, the right to come back is taken away."""

        def connect(self, address: object) -> None:
            super().connect(address)  # type: ignore[arg-type]
            os.seteuid(0)
            top.chmod(0)
            os.seteuid(65534)

    def work() -> None:
        os.seteuid(65534)
        with Closing(socket.AF_UNIX) as stream, pytest.raises(PermissionError):
            hosts.connect(long, stream)  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(PermissionError):
                connect(hosts, "a.example")
        os.seteuid(0)
        top.chmod(0o711)
        os.seteuid(65534)
        assert reached(hosts, "a.example", backend)

    in_child(work)
    stray.listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        stray.listening.accept()


def test_the_entry_for_who_has_none(hosts: Hosts) -> None:
    assert hosts.fallback("a.example") is None
    os.mkdir("_default")
    assert hosts.fallback("a.example") == "_default"
    assert hosts.fallback("example") == "_default"
    os.mkdir("_.example")
    assert hosts.fallback("a.example") == "_.example"
    assert hosts.fallback("b.a.example") == "_default"
    assert hosts.fallback("") is None
    os.mkdir("_nosni")
    assert hosts.fallback("") == "_nosni"
    # What is no directory serves nobody.
    os.rmdir("_.example")
    for make in (lambda: os.symlink("nothing", "_.example"), lambda: os.mkfifo("_.example")):
        make()
        assert hosts.fallback("a.example") == "_default"
        os.unlink("_.example")


def test_nothing_is_looked_for_elsewhere(hosts: Hosts) -> None:
    """As after a step into a directory from which there was no way back for a moment."""
    os.mkdir("_nosni")
    os.mkdir("a.example")
    os.mkdir("a.example/_default")
    os.chdir("a.example")
    hosts._elsewhere = True
    assert hosts.fallback("b.example") is None
    os.chdir("a.example")
    hosts._elsewhere = True
    assert hosts.fallback("") == "_nosni"


STRANGER, ANOTHER, NOBODY = 4321, 4322, 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
@pytest.mark.parametrize("entry", ["_.example", "_default"])
@pytest.mark.parametrize("linked", [False, True])
def test_only_the_owner_of_the_hosts_directory_serves_many(
    hosts: Hosts, entry: str, linked: bool
) -> None:
    target = "far" if linked else entry
    os.mkdir(target)
    if linked:
        os.symlink("far", entry)
    for top in (0, STRANGER, NOBODY):
        os.chown(".", top, -1)
        trusted = {0, top} - {NOBODY}
        for directory in (0, STRANGER, ANOTHER, NOBODY):
            os.chown(target, directory, -1)
            for link in (0, STRANGER, ANOTHER, NOBODY) if linked else (directory,):
                os.lchown(entry, link, -1)
                served = hosts.fallback("a.example") == entry
                assert served == ({directory, link} <= trusted), (top, directory, link)


@pytest.mark.parametrize("entry", ["_default", "_.example"])
@pytest.mark.parametrize("top", [0o755, 0o1777, 0o1775])
def test_what_others_may_write_to_serves_nobody(hosts: Hosts, entry: str, top: int) -> None:
    """Nor does the hosts directory itself, by a link of the owner's that somebody has moved here
    and a name of his own on its way."""
    os.mkdir(entry)
    os.chmod(".", top)
    for mode in (0o755, 0o750, 0o775, 0o777, 0o1777):
        os.chmod(entry, mode)
        alone = mode & 0o002 == 0 and (mode & 0o020 == 0 or top == 0o755)
        assert (hosts.fallback("a.example") == entry) == alone, oct(mode)
    os.rmdir(entry)
    os.symlink(".", "new.sock")
    os.symlink("new.sock", entry)
    assert (hosts.fallback("a.example") == entry) == (top == 0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
def test_whose_an_entry_is(hosts: Hosts, tmp_path: pathlib.Path) -> None:
    """Of a link, not of what it leads to: that may be anybody's."""
    os.mkdir("a.example")
    os.chown("a.example", STRANGER, -1)
    os.symlink("a.example", "b.example")
    os.lchown("b.example", ANOTHER, -1)
    os.chdir(tmp_path)
    hosts._elsewhere = True
    assert [hosts.owner(f"{name}.example") for name in "abc"] == [STRANGER, ANOTHER, -1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
def test_on_whose_account_a_host_goes(hosts: Hosts) -> None:
    """On its own, if somebody made it whom nobody has to be protected from."""
    os.mkdir("a.example")
    os.chown(".", STRANGER, -1)
    for owner in (0, STRANGER):
        os.chown("a.example", owner, -1)
        assert hosts.account("a.example") == "a.example"
    for owner in (ANOTHER, NOBODY):
        os.chown("a.example", owner, -1)
        assert hosts.account("a.example") == owner
    os.chown(".", NOBODY, -1)
    assert hosts.account("a.example") == NOBODY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
def test_look_ups_of_who_has_no_directory(hosts: Hosts, tmp_path: pathlib.Path) -> None:
    """At most four, where both entries are links that belong to root and lead to others."""
    for entry in ("_.example", "_default"):
        os.mkdir(tmp_path / entry)
        os.chown(tmp_path / entry, STRANGER, -1)
        os.symlink(tmp_path / entry, entry)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat", "access", "open", "readlink"):
            real = getattr(os, name)

            def spy(path: str, *rest: object, real=real, **named: object) -> object:  # type: ignore[no-untyped-def]
                seen.append(path)
                return real(path, *rest, **named)

            patch.setattr(os, name, spy)
        assert hosts.fallback("a.example") is None
    assert seen == ["_.example", "_.example", "_default", "_default"]


def test_nothing_but_the_socket_and_the_two_names_is_asked_for(
    hosts: Hosts, backends: list[Backend]
) -> None:
    make(backends, "a.example")
    assert hosts.proxy_version("a.example") == 0
    os.mkfifo("a.example/send-proxy-v1", 0)
    assert hosts.proxy_version("a.example") == 1
    os.symlink("nowhere", "a.example/send-proxy-v2")
    assert hosts.proxy_version("a.example") == 1
    os.unlink("a.example/send-proxy-v2")
    os.mkdir("a.example/send-proxy-v2", 0)
    assert hosts.proxy_version("a.example") == 2
    os.unlink("a.example/send-proxy-v1")
    assert hosts.proxy_version("a.example") == 2
    assert hosts.proxy_version("no.example") == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.ENOENT, "no_such_host"),
        (errno.ENOTDIR, "no_such_host"),
        (errno.ENAMETOOLONG, "no_such_host"),
        (errno.ELOOP, "link_loop"),
        (errno.EACCES, "permission_denied"),
        (errno.EPERM, "permission_denied"),
        (errno.ECONNREFUSED, "nothing_listens"),
    ],
)
def test_unknown_hosts(hosts: Hosts, error: int, reason: str) -> None:
    refused = hosts.refusal("none.example", OSError(error, os.strerror(error)))
    assert (refused.alert, refused.reason) == (Alert.UNRECOGNIZED_NAME, reason)


def test_every_other_error_is_a_fault(hosts: Hosts) -> None:
    unknown = {"ENOENT", "ENOTDIR", "ENAMETOOLONG", "ELOOP", "EACCES", "EPERM", "ECONNREFUSED"}
    for number, name in errno.errorcode.items():
        if name not in unknown:
            assert hosts.refusal("none.example", OSError(number, "")).alert == Alert.INTERNAL_ERROR
    assert hosts.refusal("none.example", OSError("no number at all")).alert == Alert.INTERNAL_ERROR
    assert {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM} == DESCRIPTORS_EXHAUSTED


def test_what_real_look_ups_raise(hosts: Hosts, backends: list[Backend]) -> None:
    os.mkdir("empty")
    os.symlink("loop", "loop")
    pathlib.Path("file").touch()
    os.mkdir("text")
    pathlib.Path("text/tls-socket").touch()
    os.mkdir("datagram")
    make(backends, "dead").close()
    os.mkdir("dangling")
    os.symlink("nowhere", "dangling/tls-socket")
    os.mkdir("through")
    os.symlink("../file/socket", "through/tls-socket")
    os.symlink("nowhere", "leads.nowhere")
    os.mkdir("y" * 200)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind("datagram/tls-socket")
        expected = {
            "none": (errno.ENOENT, "no_such_host"),
            "leads.nowhere": (errno.ENOENT, "no_such_host"),
            "file": (errno.ENOTDIR, "no_such_host"),
            "x" * 300: (errno.ENAMETOOLONG, "no_such_host"),
            "z" * 200: (errno.ENOENT, "no_such_host"),
            "empty": (errno.ENOENT, "no_socket"),
            "y" * 200: (errno.ENOENT, "no_socket"),
            "dangling": (errno.ENOENT, "no_socket"),
            "through": (errno.ENOTDIR, "no_socket"),
            "loop": (errno.ELOOP, "link_loop"),
            "text": (errno.ECONNREFUSED, "nothing_listens"),
            "dead": (errno.ECONNREFUSED, "nothing_listens"),
            "datagram": (errno.EPROTOTYPE, "backend_fault"),
        }
        for name, (number, reason) in expected.items():
            with pytest.raises(OSError) as raised:
                connect(hosts, name)
            assert raised.value.errno == number, name
            assert hosts.refusal(name, raised.value).reason == reason, name


def test_a_full_queue_is_told_apart(hosts: Hosts, backends: list[Backend]) -> None:
    backend = make(backends, "full", backlog=0)
    with connect(hosts, "full"):
        with pytest.raises(BlockingIOError):
            connect(hosts, "full")
        backend.accept()
        connect(hosts, "full").close()


def test_it_can_be_entered_and_neither_read_nor_written(hosts: Hosts) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(hosts.fileno(), 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(hosts.fileno(), b"x")
    assert not os.get_inheritable(hosts.fileno())


def test_a_directory_that_was_deleted_is_none(tmp_path: pathlib.Path) -> None:
    def work() -> None:
        (tmp_path / "deleted").mkdir()
        os.chdir(tmp_path / "deleted")
        (tmp_path / "deleted").rmdir()
        lowest = os.dup(0)
        os.close(lowest)
        with pytest.raises(NoHostsDirectory, match="it has been deleted"):
            Hosts()
        assert os.dup(0) == lowest  # nothing is left open

    in_child(work)


def pass_one(stream: socket.socket) -> None:
    passed = array.array("i", [0])
    stream.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])


@pytest.mark.skipif(
    not can_refuse_descriptors(), reason="not applicable: this kernel refuses no descriptors"
)
@pytest.mark.parametrize("length", [9, 200])
def test_a_backend_cannot_pass_descriptors(
    hosts: Hosts, backends: list[Backend], length: int
) -> None:
    """Not even one that is there before our connect returns."""
    backend = make(backends, "a" * length)
    with connect(hosts, "a" * length) as stream:
        accepted = backend.accept()
        with pytest.raises(PermissionError):
            pass_one(accepted)
        accepted.send(b"bytes")
        assert stream.recv(99) == b"bytes"


def test_a_kernel_that_refuses_no_descriptors(backends: list[Backend], hosts: Hosts) -> None:
    """It says so once, at the start; then the option is not asked for again."""
    backend = make(backends, "a.example")

    def work() -> None:
        forbid("setsockopt", errno.ENOPROTOOPT)
        assert not can_refuse_descriptors()
        older = Hosts()
        with connect(older, "a.example"):
            pass_one(backend.accept())
        older.close()

    in_child(work)
