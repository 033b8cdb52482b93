"""It runs where there is nothing else, and under the rules of a hardened service."""

import ctypes
import mmap
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import TIMEOUT, Backend, Proxy, read_all
from tests.executable.test_files import only_root, serve
from tests.hello import hello

Make = Callable[..., Backend]
Start = Callable[..., Proxy]

NOT_A_HELLO = b"GET / HTTP/1.1\r\n\r\n"
UNEXPECTED_MESSAGE = b"\x15\3\3\0\2\2\x0a"


@pytest.fixture
def program(executable: pathlib.Path) -> int:
    """Give a descriptor of the program, which a root directory without files can run."""
    return os.open(executable, os.O_RDONLY | os.O_CLOEXEC)


@only_root("change its root")
@pytest.mark.parametrize("closed", [(), (2,), (1, 2)])
def test_an_empty_root_directory(
    start: Start, backend_of: Make, tmp_path: pathlib.Path, program: int, closed: tuple[int, ...]
) -> None:
    """No file, no /dev, no /proc, and standard descriptors that are closed."""
    hosts = tmp_path / "hosts"
    assert not list(hosts.iterdir())

    def enter() -> None:
        os.chroot(hosts)
        for descriptor in closed:
            os.close(descriptor)
        os.execve(program, ["sniproxy"], {"SNIPROXY_LOG": "connections"})

    proxy = start(preexec=enter)
    os.close(program)
    # What is not in this alert and this answer is in nothing that the program was given to write.
    assert proxy.ask(NOT_A_HELLO) == UNEXPECTED_MESSAGE
    serve(proxy, backend_of(proxy.directory("a.example")))
    assert ("event=start" in proxy.log) == (2 not in closed)


@only_root("change its root")
def test_the_program_may_be_removed_once_it_runs(
    start: Start, backend_of: Make, tmp_path: pathlib.Path, executable: pathlib.Path
) -> None:
    """As ExecStartPost=rm does: nothing is ever read from it again."""
    hosts = tmp_path / "hosts"
    copy = hosts / "sniproxy"
    copy.write_bytes(executable.read_bytes())
    copy.chmod(0o555)

    def enter() -> None:
        os.chroot(hosts)
        os.execve("/sniproxy", ["./sniproxy"], {})

    proxy = start(preexec=enter)
    copy.unlink()
    assert proxy.ask(NOT_A_HELLO) == UNEXPECTED_MESSAGE
    serve(proxy, backend_of(proxy.directory("a.example")))
    with proxy.connect() as client:
        client.sendall(hello("nobody.example"))
        assert read_all(client)[-1] == 112


PR_SET_MDWE, PR_GET_MDWE = 65, 66
PR_MDWE_REFUSE_EXEC_GAIN = 1

_prctl = ctypes.CDLL(None, use_errno=True).prctl


def refuse_writable_code() -> None:
    """Have the kernel refuse memory that is writable and executable, or that becomes executable,
    to this process and all that it runs (PR_SET_MDWE, Linux 6.3)."""
    if _prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MDWE)")


def asks_for_writable_code() -> str:
    """Run a program that does, under the rule; give what it says."""
    code = f"import mmap; mmap.mmap(-1, 4096, prot={mmap.PROT_WRITE | mmap.PROT_EXEC})"
    return subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=refuse_writable_code,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    ).stderr


@pytest.mark.skipif(
    _prctl(PR_GET_MDWE, 0, 0, 0, 0) < 0,
    reason="not applicable: this kernel has no PR_SET_MDWE: older than 6.3",
)
def test_memory_is_never_writable_and_executable(start: Start, backend_of: Make) -> None:
    assert "PermissionError" in asks_for_writable_code()
    proxy = start(preexec=refuse_writable_code, SNIPROXY_LOG="connections")
    serve(proxy, backend_of(proxy.directory("a.example")))
    assert proxy.ask(NOT_A_HELLO) == UNEXPECTED_MESSAGE
    maps = pathlib.Path(f"/proc/{proxy.process.pid}/maps").read_text()
    rights = set(re.findall(r"^\S+ (\S{4}) ", maps, re.MULTILINE))
    assert "r-xp" in rights
    assert not [one for one in rights if "w" in one and "x" in one]
