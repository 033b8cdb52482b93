"""sniproxy-listen: what the command that it becomes has in its hands."""

import json
import os
import pathlib
import signal
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
    assert run("--backlog", "0", "127.0.0.1:0", "true").returncode == 2
    assert run("--backlog", "9" * 5000, "127.0.0.1:0", "true").returncode == 2
    assert run("--directory", "/no/such/directory", "127.0.0.1:0", "true").returncode == 1
    for user in ("no-such-user", "9" * 30, "9" * 5000):
        done = run("--user", user, "127.0.0.1:0", "true")
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    for address in ("127.0.0.1:65536", "256.1.1.1:1", "[::1.2]:1", "unix:", "unix:" + "x" * 200):
        with pytest.raises(ListenError):
            listening_socket(address, 1)
    for address in (":" + "9" * 5000, "unix:/no/such/directory/socket"):
        with pytest.raises(ListenError):
            listening_socket(address, 1)


def test_any_address_takes_both_families() -> None:
    with listening_socket(":0", 5) as listening:
        port = listening.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), 20).close()


def test_a_socket_file_that_is_there_already(tmp_path: pathlib.Path) -> None:
    (tmp_path / "socket").touch()
    done = run(f"unix:{tmp_path}/socket", "true")
    assert (done.returncode, "remove it if nobody listens there" in done.stderr) == (1, True)


def test_an_ipv6_address_takes_no_ipv4_clients() -> None:
    with listening_socket("[::1]:0", 5) as listening:
        assert listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_the_command_gets_clean_hands() -> None:
    """No descriptor but standard ones, and SIGPIPE as every program expects it."""
    show = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
    done = run("127.0.0.1:0", sys.executable, "-c", show)
    assert done.stdout == "[0, 1, 2, 3]\n"  # 3 is the listing's own
    done = run("127.0.0.1:0", "grep", "SigIgn", "/proc/self/status")
    ignored = int(done.stdout.split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


def test_with_standard_descriptors_closed(tmp_path: pathlib.Path) -> None:
    """The sockets may then have low numbers of their own: still each arrives where it should."""
    out = tmp_path / "out"
    program = "import sys; from sniproxy.commands import sniproxy_listen as c; sys.exit(c())"
    words = [sys.executable, "-c", program, "127.0.0.1:0", "[::1]:0", "--", sys.executable]
    words += ["-W", "ignore", "-c", SHOW.replace("print(", "open(sys.argv[1], 'w').write(")]
    script = '"$@" <&- >&- 2>&-'
    subprocess.run(["/bin/sh", "-c", script, "sh", *words, str(out)], check=True, timeout=60)
    mine, names, _ = json.loads(out.read_text())
    assert mine
    assert [name[0] for name in names] == ["127.0.0.1", "::1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_user() -> None:
    done = run("--user", "nobody", "127.0.0.1:0", "id", "-u")
    assert done.stdout == "65534\n"
    done = run("--user", "12345", "127.0.0.1:0", "sh", "-c", "id -u; id -g; id -G")
    assert done.stdout == "12345\n" * 3
