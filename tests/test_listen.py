"""sniproxy-listen: what the command that it becomes has in its hands."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest

from sniproxy.tools.listen import ListenError, listening_socket

SHOW = """
import json, os, socket, sys
count = int(os.environ.get("LISTEN_FDS", 0))
mine = os.environ.get("LISTEN_PID") == str(os.getpid())
fds = range(3, 3 + count) if count else [0]
names = [socket.socket(fileno=os.dup(fd)).getsockname() for fd in fds]
print(json.dumps([mine, names, os.getcwd()]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from sniproxy.commands import sniproxy_listen; sys.exit(sniproxy_listen())"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)


def test_one_socket_is_standard_input(tmp_path: pathlib.Path) -> None:
    done = run(
        "--directory", str(tmp_path), "127.0.0.1:0", sys.executable, "-W", "ignore", "-c", SHOW
    )
    mine, names, directory = json.loads(done.stdout)
    assert not mine
    assert names[0][0] == "127.0.0.1"
    assert directory == str(tmp_path)


def test_several_sockets_by_listen_fds(tmp_path: pathlib.Path) -> None:
    unix = f"unix:{tmp_path}/socket"
    done = run("127.0.0.1:0", "[::1]:0", unix, "--", sys.executable, "-W", "ignore", "-c", SHOW)
    mine, names, _ = json.loads(done.stdout)
    assert mine
    assert [name[0] for name in names[:2]] == ["127.0.0.1", "::1"]
    assert names[2] == f"{tmp_path}/socket"


def test_errors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(f"127.0.0.1:{port}", "true")
    assert (done.returncode, "somebody else has it" in done.stderr) == (1, True)
    assert run("127.0.0.1:0", "/no/such/command").returncode == 127
    assert run("127.0.0.1:0", "/etc/passwd").returncode == 126
    assert run("true").returncode == 2
    assert run("127.0.0.1:0").returncode == 2
    for address in ("127.0.0.1:65536", "256.1.1.1:1", "[::g]:1"):
        with pytest.raises(ListenError):
            listening_socket(address, 1)


def test_any_address_takes_both_families() -> None:
    with listening_socket(":0", 5) as listening:
        port = listening.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), 20).close()
