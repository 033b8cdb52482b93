"""The files that the executable touches, and that nothing in the hosts directory is taken for code.

The hosts directory may be anybody's to write in, and in a chroot it is "/" as well.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
from collections.abc import Callable

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


def without_the_program(paths: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {entry for entry in paths if entry[0] != "execve"}


class Traced:
    """A proxy under strace, and the phases of its trace when it has ended."""

    def __init__(
        self,
        command: list[str],
        hashed: bool,
        folder: pathlib.Path,
        preexec: Callable[[], None] | None = None,
        **environment: str,
    ) -> None:
        self._trace = folder / "trace"
        hosts = folder / "hosts"
        hosts.mkdir()
        listening = socket.create_server(("127.0.0.1", 0))
        environment = {"SNIPROXY_WORKERS": "1", **environment}
        self.proxy = Proxy(traced(command, self._trace), hosts, listening, environment, preexec)
        self.proxy.hashed = hashed

    def end(self) -> list[set[tuple[str, str]]]:
        assert self.proxy.stop(signal.SIGTERM) == 0
        self.proxy.listening.close()
        lines = finished(self._trace, self.proxy.process.pid)
        return [without_the_program(touched(phase)) for phase in phases(lines)]


@pytest.fixture
def under_strace(command: list[str], hashed: bool, tmp_path: pathlib.Path) -> Traced:
    return Traced(command, hashed, tmp_path)


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
        ("connect", f"{host}/tls-socket"),
        ("access", f"{host}/send-proxy-v2"),
        ("access", f"{host}/send-proxy-v1"),
    }
    nobody = directory_name(hashed, "nobody.example")
    assert unknown == {("connect", f"{nobody}/tls-socket")}
    assert refused == set()


def test_paths_of_a_long_host_name(under_strace: Traced, hashed: bool, backend_of: Make) -> None:
    """Where the path is no address, the host's directory is entered and left again."""
    if hashed:
        pytest.skip("in the hashed flavour no path is too long")
    host = ".".join(["long" * 10] * 5)
    proxy = under_strace.proxy
    backend = backend_of(proxy.directory(host))
    with proxy.connect() as client:
        client.sendall(hello(host))
        backend.accept().close()
    start, served = under_strace.end()
    assert start == START
    assert served == {
        ("chdir", host),
        ("connect", "tls-socket"),
        ("fchdir", ""),
        ("access", f"{host}/send-proxy-v2"),
        ("access", f"{host}/send-proxy-v1"),
    }


@pytest.mark.parametrize("name", ["sniproxy-hostname", "sniproxy-check", "sniproxy-listen"])
def test_the_other_commands_touch_no_file_at_their_start(
    executable: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    link = tmp_path / name
    link.symlink_to(executable)
    trace = tmp_path / "trace"
    command = traced([str(link), "--version"], trace)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=TIMEOUT)[0].startswith(name.encode())
    assert without_the_program(touched(finished(trace, process.pid))) == INTERPRETER


MODULES = (
    "sitecustomize", "usercustomize", "encodings", "codecs", "io", "os", "abc", "site", "asyncio",
    "sniproxy", "idna", "_socket", "select", "socket", "linecache", "traceback", "logging",
    "selectors", "signal", "importlib", "zipimport", "warnings", "sniproxy_hostile",
)  # fmt: skip
"""Names under which Python would look for code."""

TRACED_BACK = (
    "asyncio.runners", "asyncio.base_events", "asyncio.unix_events", "asyncio.selector_events",
    "sniproxy.commands", "sniproxy.proxy.server", "sniproxy.proxy.connection", "selectors",
    "sniproxy.proxy.log", "sniproxy.proxy.relay", "sniproxy.resolver.hosts", "<string>", "<stdin>",
    "<frozen importlib._bootstrap>",
)  # fmt: skip
"""Names that code in the executable has in tracebacks. Whoever opens a FIFO waits for ever."""

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
    (hosts / "etc").mkdir(exist_ok=True)
    (hosts / "dev").mkdir(exist_ok=True)
    for name in ("etc/localtime", "etc/nsswitch.conf", "etc/passwd", "dev/null", "dev/urandom"):
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


def test_no_traceback_opens_a_file(command: list[str], tmp_path: pathlib.Path) -> None:
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
                traced(limited, trace), stdin=listening, cwd=hosts, stderr=subprocess.PIPE
            ) as process,
        ):
            assert process.stderr is not None
            for line in process.stderr:
                said += line.decode()
                if b"event=start" in line:
                    process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT)
            lines = finished(trace, process.pid)
        started = next(at for at, line in enumerate(lines) if f'execve("{command[0]}"' in line)
        assert without_the_program(touched(lines[started:])) <= START
    # Errors that nobody could catch, since they arose in a destructor, were told without a file.
    assert "Exception ignored in" in said
    assert "AttributeError" in said
    assert "  File " not in said
