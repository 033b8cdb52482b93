"""The files that the executable touches, and that nothing in the hosts directory is taken for code.

The hosts directory may be anybody's to write in, and in a chroot it is "/" as well.
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.end_to_end.harness import TIMEOUT, Backend, Proxy, directory_name, read_exactly
from tests.executable.tracing import finished, phases, touched, traced
from tests.hello import hello

HELLO = hello("a.example")
NOT_A_HELLO = b"GET / HTTP/1.1\r\n\r\n"
ALERTS = {b"\x15\3\3\0\2\2\x0a", b"\x15\3\3\0\2\2\x70"}

Make = Callable[..., Backend]

INTERPRETER = {
    # The C library asks where it lies, the interpreter whether its name is a link: both are told
    # nothing that matters (there need be no /proc).
    ("readlink", "/proc/self/exe"),
    ("readlink", "/"),
}
START = INTERPRETER | {("openat", ".")}
"""What is touched before the first connection, besides the program itself: "." is the hosts
directory, opened with O_PATH."""


def only_root(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(os.geteuid() != 0, reason=f"only root can {why}")


def serve(proxy: Proxy, backend: Backend) -> None:
    """Have one connection relayed both ways."""
    with proxy.connect() as client:
        client.sendall(HELLO)
        stream = backend.accept()
        assert read_exactly(stream, len(HELLO)) == HELLO
        stream.sendall(b"answer")
        assert read_exactly(client, 6) == b"answer"
        stream.close()


def install(executable: pathlib.Path, hosts: pathlib.Path) -> None:
    """Put a copy of the program into a jail."""
    shutil.copy(executable, hosts / "program")


def since_exec(lines: list[str], program: str) -> list[str]:
    """Leave out what was done before ``program`` was executed, by a shell or chroot(1)."""
    at = next(at for at, line in enumerate(lines) if f'execve("{program}"' in line)
    return lines[at + 1 :]


class Traced:
    """A proxy under strace, and the phases of its trace when it has ended."""

    def __init__(
        self,
        command: list[str],
        hashed: bool,
        folder: pathlib.Path,
        before: Callable[[], None] = lambda: None,
        **environment: str,
    ) -> None:
        self._trace = folder / "trace"
        self._program = command[-1]
        hosts = folder / "hosts"
        hosts.mkdir()
        before()
        listening = socket.create_server(("127.0.0.1", 0))
        self.proxy = Proxy(traced(command, self._trace), hosts, listening, environment)
        self.proxy.hashed = hashed

    def end(self) -> list[set[tuple[str, str]]]:
        """Stop it; give what was touched in each phase."""
        assert self.proxy.stop(signal.SIGTERM) == 0
        self.proxy.listening.close()
        lines = since_exec(finished(self._trace, self.proxy.process.pid), self._program)
        return [touched(phase) for phase in phases(lines)]


def test_calls_have_one_name_on_each_architecture() -> None:
    lines = ['7 readlinkat(AT_FDCWD, "/", 0x1, 9) = -1', '7 faccessat(AT_FDCWD, "a", F_OK) = 0']
    assert touched(lines) == {("readlink", "/"), ("access", "a")}


@pytest.fixture
def under_strace(
    command: list[str], hashed: bool, workers: str, tmp_path: pathlib.Path
) -> Iterator[Traced]:
    running = Traced(command, hashed, tmp_path, SNIPROXY_WORKERS=workers)
    yield running
    running.proxy.stop(signal.SIGTERM, signal.SIGHUP)
    running.proxy.listening.close()


def test_paths_of_the_start_and_of_each_connection(
    under_strace: Traced, backend_of: Make, hashed: bool
) -> None:
    """Nothing else is touched: neither by a connection, nor by a refusal, nor by the end."""
    proxy = under_strace.proxy
    serve(proxy, backend_of(proxy.directory("a.example")))
    assert proxy.ask(hello("nobody.example")) in ALERTS
    assert proxy.ask(NOT_A_HELLO) in ALERTS
    start, served, unknown, refused = under_strace.end()
    assert start == START
    host = directory_name(hashed, "a.example")
    assert served == {
        ("newfstatat", host),  # the first time: on whose account it is counted
        ("connect", f"{host}/tls-socket"),
        ("access", f"{host}/send-proxy-v2"),
        ("access", f"{host}/send-proxy-v1"),
    }
    nobody = directory_name(hashed, "nobody.example")
    assert unknown == {
        ("connect", f"{nobody}/tls-socket"),
        ("access", f"{nobody}/."),
        *(("newfstatat", directory_name(hashed, name)) for name in ("_.example", "_default")),
    }
    assert refused == set()


def test_paths_of_a_long_host_name(under_strace: Traced, hashed: bool, backend_of: Make) -> None:
    """Where the path is no address, the host's directory is entered and left again."""
    if hashed:
        pytest.skip("not applicable: in the hashed flavour no path is too long")
    host = ".".join(["long" * 10] * 5)
    proxy = under_strace.proxy
    backend = backend_of(proxy.directory(host))
    with proxy.connect() as client:
        client.sendall(hello(host))
        backend.accept().close()
    start, served = under_strace.end()
    assert start == START
    assert served == {
        ("newfstatat", host),
        ("chdir", host),
        ("connect", "tls-socket"),
        ("fchdir", ""),
        ("access", f"{host}/send-proxy-v2"),
        ("access", f"{host}/send-proxy-v1"),
    }


def test_paths_of_counting_the_workers(
    command: list[str], hashed: bool, tmp_path: pathlib.Path
) -> None:
    """Where nobody says how many, the kernel is asked, which knows the limits of the group."""
    traced_proxy = Traced(command, hashed, tmp_path, SNIPROXY_WORKERS="")
    assert traced_proxy.proxy.ask(NOT_A_HELLO) in ALERTS
    start, _ = traced_proxy.end()
    counting = start - START
    assert {("newfstatat", "/"), ("openat", "/proc/self/cgroup")} <= counting
    assert all(
        path.startswith("/sys/fs/cgroup/") and path.endswith("/cpu.max")
        for call, path in counting - {("newfstatat", "/"), ("openat", "/proc/self/cgroup")}
    )


@only_root("change its root")
def test_paths_of_counting_the_workers_in_a_jail(
    executable: pathlib.Path, hashed: bool, tmp_path: pathlib.Path
) -> None:
    """Below a root that is the hosts directory, what is called /proc may be anybody's."""
    hosts = tmp_path / "hosts"
    command = ["chroot", str(hosts), "/program"]
    traced_proxy = Traced(command, hashed, tmp_path, before=lambda: install(executable, hosts))
    assert traced_proxy.proxy.ask(NOT_A_HELLO) in ALERTS
    start, _ = traced_proxy.end()
    assert start == START | {("newfstatat", "/")}


@pytest.mark.parametrize(
    "name", ["sniproxy-hostname", "sniproxy-check", "sniproxy-listen", "sniproxy-status"]
)
def test_the_other_commands_touch_no_file_at_their_start(
    executable: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    link = tmp_path / name
    link.symlink_to(executable)
    trace = tmp_path / "trace"
    command = traced([str(link), "--version"], trace)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=TIMEOUT)[0].startswith(name.encode())
    lines = since_exec(finished(trace, process.pid), str(link))
    assert touched(lines) == INTERPRETER


MODULES = (
    "sitecustomize", "usercustomize", "encodings", "codecs", "io", "os", "abc", "site", "asyncio",
    "sniproxy", "idna", "_socket", "select", "socket", "linecache", "traceback", "logging",
    "selectors", "signal", "importlib", "zipimport", "warnings", "sniproxy_hostile",
)  # fmt: skip
"""Names under which Python would look for code."""

TRACED_BACK = (
    "sniproxy.commands", "sniproxy.process.service", "sniproxy.process.server",
    "sniproxy.dataplane.connections", "sniproxy.dataplane.poller", "sniproxy.log.log",
    "sniproxy.dataplane.relay", "sniproxy.resolver.hosts", "<string>", "<stdin>",
    "<frozen importlib._bootstrap>",
)  # fmt: skip
"""Names that code in the executable has in tracebacks. Whoever opens a FIFO waits for ever."""

SYSTEM_FILES = (
    "etc/localtime", "etc/nsswitch.conf", "etc/passwd", "dev/null", "dev/urandom", "proc/self/maps",
    "proc/self/cgroup", "sys/fs/cgroup/cpu.max", "sys/devices/system/cpu/online",
)  # fmt: skip
"""What a C library or an interpreter might want, where the hosts directory is the root."""

LIBRARIES = (".", "lib/python3.11", "usr/lib/python3.11", "usr/local/lib/python3.11")
VARIABLES = {
    # Each of these would be an error, a word on standard error, or code that runs.
    "PYTHONHASHSEED": "no number",
    "PYTHONMALLOC": "no allocator",
    "PYTHONHOME": "/",
    "PYTHONPLATLIBDIR": "lib",
    "PYTHONUSERBASE": "/",
    "PYTHONSTARTUP": "sitecustomize.py",
    "PYTHONVERBOSE": "2",
    "PYTHONDEBUG": "9",
    "PYTHONDEVMODE": "1",
    "PYTHONINSPECT": "1",
    "PYTHONWARNINGS": "always,error::nonsense",
    "PYTHONTRACEMALLOC": "no number",
    "PYTHONPROFILEIMPORTTIME": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONBREAKPOINT": "sniproxy_hostile.run",
    "PYTHONIOENCODING": "no-codec",
    "PYTHONINTMAXSTRDIGITS": "1",
    "PYTHONUTF8": "no",
    "PYTHONEXECUTABLE": "/hostile",
    "PYOXIDIZER_NO_SITE": "",
    "RUST_BACKTRACE": "full",
    "LC_ALL": "hostile",
    "LOCPATH": "/",
    "GCONV_PATH": "/",
    "TZ": "hostile",
    "TZDIR": "/",
}


def salt(hosts: pathlib.Path) -> set[pathlib.Path]:
    """Put everything into ``hosts`` that Python would take for its own; give what is there then."""
    fatal = "import os\nopen(os.path.join('/', 'executed'), 'w').close()\nos._exit(99)\n"
    for library in LIBRARIES:
        folder = hosts / library
        folder.mkdir(parents=True, exist_ok=True)
        for module in MODULES:
            (folder / module).mkdir(exist_ok=True)
            (folder / module / "__init__.py").write_text(fatal)
            (folder / f"{module}.py").write_text(fatal)
            (folder / f"{module}.cpython-311-{os.uname().machine}-linux-gnu.so").write_text("no")
        (folder / "hostile.pth").write_text("import sniproxy_hostile\n")
        (folder / "os.pyc").write_bytes(b"no bytecode")
    (hosts / "pyvenv.cfg").write_text("home = /lib\ninclude-system-site-packages = true\n")
    for name in ("python311._pth", "sniproxy._pth", "python._pth"):
        (hosts / name).write_text("lib/python3.11\nimport site\n")
    (hosts / "lib" / "python311.zip").write_bytes(b"no archive")
    (hosts / "pybuilddir.txt").write_text("lib/python3.11")
    for name in TRACED_BACK:
        if not (hosts / name).exists():
            os.mkfifo(hosts / name)
    for name in SYSTEM_FILES:
        (hosts / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(hosts / name)
    return set(hosts.rglob("*"))


@pytest.mark.parametrize("jail", [pytest.param(True, marks=only_root("change its root")), False])
def test_nothing_in_the_hosts_directory_is_taken_for_code(
    start: Callable[..., Proxy],
    backend_of: Make,
    executable: pathlib.Path,
    tmp_path: pathlib.Path,
    jail: bool,
) -> None:
    """Neither a file there nor a PYTHON variable changes what is done."""
    hosts = tmp_path / "hosts"
    before = salt(hosts)
    path = str(hosts) if not jail else "/"
    variables = {**VARIABLES, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": f"{path}/cache"}
    program = os.open(executable, os.O_RDONLY)

    def imprison() -> None:
        if jail:
            os.chroot(hosts)
        # The file is reached by its descriptor: the jail itself holds no program.
        os.execve(program, ["sniproxy"], {**variables, "SNIPROXY_LOG": "connections"})

    proxy = start(preexec=imprison)
    os.close(program)
    backend = backend_of(proxy.directory("a.example"))
    serve(proxy, backend)
    assert proxy.ask(NOT_A_HELLO) in ALERTS
    assert proxy.stop(signal.SIGTERM) == 0
    created = set(hosts.rglob("*")) - before
    assert created == {backend_path(proxy), backend_path(proxy).parent}
    assert not pathlib.Path("/executed").exists()
    events = sorted(re.findall(r" event=(\w+) .*$", proxy.log, re.MULTILINE))
    assert events == ["connection", "connection", "exit", "refused", "start", "stop"], proxy.log
    assert proxy.log.count("\n") == len(events)


def backend_path(proxy: Proxy) -> pathlib.Path:
    return proxy.hosts / directory_name(proxy.hashed, "a.example") / "tls-socket"


def takes_signals(pid: int, program: str) -> bool:
    """Say whether a process runs ``program`` and has SIGTERM caught or blocked, proc(5)."""
    try:
        if os.readlink(f"/proc/{pid}/exe") != program:
            return False
    except FileNotFoundError:
        return False
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"^Sig(?:Cgt|Blk):\t(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) & 1 << signal.SIGTERM - 1 for mask in masks)


def test_no_traceback_opens_a_file(
    command: list[str], workers: str, tmp_path: pathlib.Path
) -> None:
    """Fail wherever a descriptor is needed: errors come up in all layers, and none is looked up."""
    hosts = tmp_path / "hosts"
    hosts.mkdir()
    salt(hosts)
    said = ""
    for limit in range(3, 16):
        trace = tmp_path / f"trace-{limit}"
        limited = ["/bin/sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command]
        with (
            socket.create_server(("127.0.0.1", 0)) as listening,
            subprocess.Popen(
                traced(limited, trace),
                stdin=listening,
                cwd=hosts,
                env={**os.environ, "SNIPROXY_WORKERS": workers},
                stderr=subprocess.PIPE,
            ) as process,
        ):
            assert process.stderr is not None
            # Either it has failed by itself, or it is told to end once it serves.
            while process.poll() is None and not takes_signals(process.pid, command[0]):
                os.sched_yield()
            process.terminate()
            said += process.communicate(timeout=TIMEOUT)[1].decode()
            lines = finished(trace, process.pid)
        assert touched(since_exec(lines, command[0])) <= START
    # They were told, and without a file.
    assert "sniproxy: can't start: " in said
    assert "Traceback" not in said
    assert "  File " not in said
