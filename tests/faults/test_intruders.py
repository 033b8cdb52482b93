"""Local users with a hosts directory of their own, and clients, try what
docs/explanation/security.md says that they can't do."""

import ctypes
import os
import pathlib
import selectors
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import TIMEOUT, Backend, Proxy, directory_name, read_exactly
from tests.faults.harness import HELLO, HOST, ask, eventually
from tests.faults.harness import Backend as Serving
from tests.faults.test_system import may_mount, own_mounts
from tests.hello import hello

Start = Callable[..., Proxy]
Make = Callable[..., Backend]
Serve = Callable[..., Serving]

UNRECOGNIZED_NAME = b"\x15\3\3\0\2\2\x70"
VICTIM, INTRUDER = 54_001, 54_002
"""Two users without a name."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users")


def as_user(uid: int, attack: Callable[[], object], where: pathlib.Path) -> str:
    """Have another user do something in a directory; give the error's name, or nothing."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        name = ""
        try:
            os.chdir(where)
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            attack()
        except BaseException as error:
            name = type(error).__name__
        os.write(write, name.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as told:
        return told.read()


def open_to_all(path: pathlib.Path, mode: int) -> None:
    """Give a directory a mode, and let everybody come that far."""
    for parent in path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != pathlib.Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    path.chmod(mode)


def listen_at(name: str) -> None:
    """Make a host of that name; nobody listens any more when the process has ended."""
    os.makedirs(name, exist_ok=True)
    socket.socket(socket.AF_UNIX).bind(f"{name}/tls-socket")


@needs_root
def test_a_host_cannot_be_taken_over(start: Start, backend_of: Make) -> None:
    """In a hosts directory of mode 1777, as the manual suggests for untrusted users."""
    proxy = start()
    open_to_all(proxy.hosts, 0o1777)
    backend = backend_of(proxy.directory(HOST))
    victim = proxy.directory(HOST)
    for path in (victim, victim / "tls-socket"):
        os.chown(path, VICTIM, VICTIM)
    name = victim.name

    def put_another_in_its_place() -> None:
        os.mkdir("another")
        os.rename("another", name)

    attacks: list[Callable[[], object]] = [
        lambda: os.rename(name, "mine"),
        put_another_in_its_place,
        lambda: shutil.rmtree(name),
        lambda: os.unlink(f"{name}/tls-socket"),
        lambda: os.symlink("mine", name),
        lambda: os.mknod(f"{name}/send-proxy-v1"),
        lambda: os.chmod(name, 0o777),
        lambda: listen_at(name),
    ]
    for attack in attacks:
        assert as_user(INTRUDER, attack, proxy.hosts) in {
            "PermissionError",
            "FileExistsError",
            "OSError",
        }
    # Another spelling is another directory, which nobody can ask for.
    for spelling in (HOST.upper(), f"{HOST}.", f".{HOST}", f"{HOST}:443", f"{HOST} "):
        entry = directory_name(proxy.hashed, spelling)
        assert as_user(INTRUDER, lambda entry=entry: listen_at(entry), proxy.hosts) == ""
        for asked in (HOST, HOST.upper()):
            with proxy.connect() as client:
                client.sendall(hello(asked))
                stream = backend.accept()
                assert read_exactly(stream, 5) == HELLO[:5]
                stream.close()


@needs_root
def test_links_of_others_in_a_sticky_directory(start: Start, backend_of: Make) -> None:
    """A user's link to another host is followed in a mode 1777 directory as well. Where
    fs.protected_symlinks is on, it is not if it is the last part of a path, as it is for a name
    that is too long for a socket's address."""
    protected = pathlib.Path("/proc/sys/fs/protected_symlinks").read_text().strip() == "1"
    proxy = start()
    open_to_all(proxy.hosts, 0o1777)
    backend = backend_of(proxy.directory(HOST))
    target = proxy.directory(HOST).name
    long = ".".join(["b" * 60] * 2)
    for name in ("b.example", long):
        link = directory_name(proxy.hashed, name)
        assert as_user(INTRUDER, lambda link=link: os.symlink(target, link), proxy.hosts) == ""
        if protected and link == long:
            assert proxy.ask(hello(name)) == UNRECOGNIZED_NAME
            continue
        with proxy.connect() as client:
            client.sendall(hello(name))
            assert read_exactly(backend.accept(), 5) == hello(name)[:5]


def test_traps_in_a_host_directory(start: Start, serve: Serve, tmp_path: pathlib.Path) -> None:
    """Pipes, devices, circles and mazes: none is opened, none makes anybody wait."""
    proxy = start()
    serve(proxy.directory(HOST))
    ask(proxy)

    def trap(name: str) -> pathlib.Path:
        return proxy.directory(name) / "tls-socket"

    os.mkfifo(trap("fifo.example"))
    trap("zero.example").symlink_to("/dev/zero")
    trap("tty.example").symlink_to("/dev/tty")
    trap("self.example").symlink_to("/proc/self/fd/0")
    trap("circle.example").symlink_to("../circle.example/tls-socket")
    trap("folder.example").mkdir()
    trap("file.example").write_text("#!/bin/sh\n")
    trap("file.example").chmod(0o755)
    maze = tmp_path / "maze"
    maze.mkdir()
    for step in range(60):
        (maze / str(step)).symlink_to(str(step + 1))
    trap("maze.example").symlink_to(maze / "0")
    for number in range(3, 12):
        trap(f"fd{number}.example").symlink_to(f"/proc/self/fd/{number}")
    names = ["fifo", "zero", "tty", "self", "circle", "folder", "file", "maze"]
    names += [f"fd{number}" for number in range(3, 12)]
    for name in names:
        assert proxy.ask(hello(f"{name}.example")) == UNRECOGNIZED_NAME, name
        ask(proxy)
    # Whatever stands under these names counts as their being there, and no more.
    directory = proxy.directory("header.example")
    serve(directory)
    os.mkfifo(directory / "send-proxy-v1")
    with proxy.connect() as client:
        client.sendall(hello("header.example"))
        # The backend takes the header for a hello of some 20 kB, which never comes.
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
    ask(proxy)


LINKS_OF_A_LOOK_UP = 40
"""Symbolic links after which the kernel gives up, path_resolution(7)."""

LONGEST_PATH = 4095


def maze(where: pathlib.Path, end: str) -> str:
    """Make the dearest way to ``end``: as many links as the kernel follows, each as long as a path
    may be. Give its first."""
    (where / "d").mkdir()
    links = LINKS_OF_A_LOOK_UP - 1  # one leads here
    names = [str(where / f"link{number}") for number in range(links)]
    for name, target in zip(names, [*names[1:], end], strict=True):
        pad = (LONGEST_PATH - len(target) - len(str(where))) // len("/d/..")
        os.symlink(f"{where}{'/d/..' * pad}{target.removeprefix(str(where))}", name)
    return names[0]


def test_a_maze_of_links_stops_nobody(
    start: Start, serve: Serve, backend_of: Make, tmp_path: pathlib.Path
) -> None:
    """It costs a worker milliseconds a connection, three look-ups in all; while they keep coming,
    others are served, and so is the maze itself. (Where the kernel has to begin such a walk anew,
    it goes on counting links: then there are too many.)"""
    proxy = start()
    serve(proxy.directory(HOST))
    ask(proxy)
    directory = proxy.directory("maze.example")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    backend = backend_of(hidden, 1000)
    for name, end in (
        ("tls-socket", f"{hidden}/tls-socket"),
        ("send-proxy-v1", f"{hidden}/nothing"),
        ("send-proxy-v2", f"{hidden}/nothing"),
    ):
        where = hidden / name.upper()
        where.mkdir()
        (directory / name).symlink_to(maze(where, end.replace(str(hidden), f"{where}/..")))
    wire = hello("maze.example")
    clients = []
    for _ in range(20):
        for _ in range(20):
            clients.append(proxy.connect())
            clients[-1].sendall(wire)
        ask(proxy)
    # They come in no order: who left as soon as there is one could be still on its way.
    served = refused = 0
    with selectors.DefaultSelector() as either:
        for one in (backend.listening, *clients):
            either.register(one, selectors.EVENT_READ)
        while served + refused < len(clients):
            ready = [key.fileobj for key, _ in either.select(TIMEOUT)]
            assert ready, (served, refused)
            for one in ready:
                if one is backend.listening:
                    assert read_exactly(backend.accept(), len(wire)) == wire
                    served += 1
                else:
                    assert read_exactly(one, len(UNRECOGNIZED_NAME)) == UNRECOGNIZED_NAME
                    either.unregister(one)
                    refused += 1
    assert refused < served // 10
    for client in clients:
        client.close()


def mount_of_somebody(where: pathlib.Path) -> None:
    """Mount a file system of another user's, who does not answer, as any user may by FUSE."""
    own_mounts()
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id={INTRUDER},group_id={INTRUDER}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    # MS_NOSUID and MS_NODEV, as fusermount has it.
    if libc.mount(b"nothing", os.fsencode(where), b"fuse", 2 | 4, options):
        raise OSError(ctypes.get_errno(), "mount")


@needs_root
def test_a_file_system_of_a_user_that_never_answers(
    start: Start, serve: Serve, tmp_path: pathlib.Path
) -> None:
    """A look-up in it would wait for ever; the kernel lets nobody in but who mounted it."""
    if not os.path.exists("/dev/fuse") or not may_mount():
        pytest.skip("mounting by FUSE takes /dev/fuse and CAP_SYS_ADMIN")
    where = tmp_path / "fuse"
    where.mkdir()
    proxy = start(preexec=lambda: mount_of_somebody(where))
    serve(proxy.directory(HOST))
    eventually(lambda: proxy.process.poll() is not None or "event=start" in proxy.log, "no start")
    if proxy.process.poll() is not None:
        pytest.skip("not applicable: the kernel has no FUSE")
    (proxy.directory("fuse.example") / "tls-socket").symlink_to(where / "tls-socket")
    link = proxy.directory("folder.example")
    link.rmdir()
    link.symlink_to(where)
    long = proxy.hosts / directory_name(proxy.hashed, "c." * 120 + "example")
    long.symlink_to(where)
    for name in ("fuse.example", "folder.example", "c." * 120 + "example"):
        assert proxy.ask(hello(name)) == UNRECOGNIZED_NAME
        ask(proxy)


def test_nobody_writes_lines_into_the_log(start: Start, tmp_path: pathlib.Path) -> None:
    """Names, addresses and settings from outside are escaped: one event stays one line."""
    forged = "\ntime=2026-01-01T00:00:00.000Z level=error event=forged"
    listening = socket.socket(socket.AF_UNIX)
    here = pathlib.Path.cwd()
    os.chdir(tmp_path)
    listening.bind(f"l{forged}")
    os.chdir(here)
    listening.listen()
    proxy = start(listening, SNIPROXY_LOG=f"connections{forged}")
    for wire in (
        hello(f"a{forged}"),
        forged.encode(),
        hello("a\x1b[31m"),
        hello("nobody.example"),
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            os.chdir(tmp_path)
            client.connect(f"l{forged}")
            os.chdir(here)
            client.sendall(wire)
            assert client.recv(7)[:1] == b"\x15"
    assert "forged" in proxy.log
    assert "event=refused" in proxy.log or "event=start" in proxy.log
    for line in proxy.log.splitlines():
        assert "event=forged" not in line.split(" ")[2]
        assert "\x1b" not in line


def test_a_client_cannot_forge_a_header(proxy: Proxy, backend_of: Make) -> None:
    """What it says before its hello is refused; what the backend reads first is ours."""
    directory = proxy.directory(HOST)
    backend = backend_of(directory)
    (directory / "send-proxy-v1").touch()
    forged = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    assert proxy.ask(forged + HELLO) == b"\x15\3\3\0\2\2\x0a"
    version_2 = bytes.fromhex("0d0a0d0a000d0a515549540a2111000c") + bytes(12)
    assert proxy.ask(version_2 + HELLO) == b"\x15\3\3\0\2\2\x0a"
    with proxy.connect() as client:
        client.sendall(HELLO + forged)
        stream = backend.accept()
        line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {client.getsockname()[1]} ".encode()
        assert read_exactly(stream, len(line)) == line


def tool(name: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    program = f"import sys; from sniproxy.commands import {name}; sys.exit({name}())"
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-P", "-c", program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        **options,
    )


def test_the_check_of_a_hostile_directory(tmp_path: pathlib.Path) -> None:
    """Run by an administrator over what users have made: it neither waits, nor opens, nor lets
    a name move the cursor."""
    hosts = tmp_path / "hosts"
    hosts.mkdir()
    for name in ("\x1b]0;owned\x07", "a\nb", "a.example", "fifo.example", "\udcff", "sniproxy.py"):
        (hosts / name).mkdir()
    (hosts / "json.py").write_text("raise SystemExit('imported')")
    (hosts / "idna").mkdir()
    (hosts / "idna" / "__init__.py").write_text("raise SystemExit('imported')")
    os.mkfifo(hosts / "fifo.example" / "tls-socket")
    (hosts / "a.example" / "tls-socket").symlink_to("../\x1b[31m/tls-socket")
    os.mkfifo(hosts / "a.example" / "send-proxy-v1")
    for arguments in ([str(hosts)], ["--json", str(hosts)]):
        done = tool("sniproxy_check", *arguments)
        assert done.returncode == 1
        assert "imported" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        printed = set(done.stdout) - {"\n"}
        assert all(character.isprintable() for character in printed)


def test_listening_in_a_hostile_directory_runs_nothing_of_it(tmp_path: pathlib.Path) -> None:
    """A command without a slash is looked for in $PATH, not where --directory leads."""
    planted = tmp_path / "sniproxy-of-somebody"
    planted.write_text("#!/bin/sh\necho taken\n")
    planted.chmod(0o755)
    for module in ("os.py", "socket.py", "warnings.py"):
        (tmp_path / module).write_text("print('taken')")
    done = tool("sniproxy_listen", "--directory", str(tmp_path), "127.0.0.1:0", planted.name)
    assert done.returncode == 127
    assert "taken" not in done.stdout + done.stderr
    true = shutil.which("true")
    assert true is not None
    done = tool("sniproxy_listen", "--directory", str(tmp_path), "127.0.0.1:0", "true")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_full_queue_of_one_host_does_not_hold_up_the_others(
    start: Start, serve: Serve, backend_of: Make
) -> None:
    """Hundreds wait for a backend of somebody who never accepts; the others are served."""
    proxy = start()
    serve(proxy.directory(HOST))
    ask(proxy)
    backend_of(proxy.directory("full.example"), 1)
    waiting = []
    for _ in range(400):
        waiting.append(proxy.connect())
        waiting[-1].sendall(hello("full.example"))
    for _ in range(200):
        assert ask(proxy) >= 0
    for client in waiting:
        client.close()
