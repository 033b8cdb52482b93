"""sniproxy-listen: what the command that it becomes has in its hands."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from sniproxy.tools import listen
from sniproxy.tools.listen import AddressError, ListenError, listening_socket, main
from tests.processes import in_child
from tests.transcript import cases

SHOW = """
import json, os, socket, sys
count = int(os.environ.get("LISTEN_FDS", 0))
mine = os.environ.get("LISTEN_PID") == str(os.getpid())
fds = range(3, 3 + count) if count else [0]
names = [socket.socket(fileno=os.dup(fd)).getsockname() for fd in fds]
print(json.dumps([mine, names, os.getcwd()]))
"""


PROGRAM = "import sys; from sniproxy.commands import sniproxy_listen as c; sys.exit(c())"


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{before}\n{PROGRAM}", *arguments]
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


SHOW_NAMES = """
import json, os, socket
def address(fd):
    return socket.socket(fileno=os.dup(fd)).getsockname()
count = int(os.environ["LISTEN_FDS"])
assert os.environ["LISTEN_PID"] == str(os.getpid())
names = os.environ["LISTEN_FDNAMES"].split(":")
try:
    at_input = address(0)
except OSError:
    at_input = None
print(json.dumps([at_input, [[name, address(fd)] for fd, name in enumerate(names, 3)]]))
assert len(names) == count
"""


def show_names(*arguments: str) -> tuple[object, list[list[object]]]:
    """Give what is at standard input, and what is passed besides, by its names."""
    done = run(*arguments, "--", sys.executable, "-W", "ignore", "-c", SHOW_NAMES)
    assert done.returncode == 0, done.stderr
    at_input, passed = json.loads(done.stdout)
    return at_input, passed


def test_a_status_socket_beside_one_for_clients(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "status")
    at_input, passed = show_names("--status", f"unix:{path}", f"unix:{tmp_path}/socket")
    assert at_input == f"{tmp_path}/socket"
    assert passed == [["status", path]]


def test_status_sockets_beside_several(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "status")
    options = ["--status", f"unix:{path}", "--proxy", "--status", "127.0.0.1:0"]
    at_input, passed = show_names(*options, f"unix:{tmp_path}/one", f"unix:{tmp_path}/two")
    assert at_input is None
    assert passed[:3] == [
        ["proxy", f"{tmp_path}/one"],
        ["proxy", f"{tmp_path}/two"],
        ["status", path],
    ]
    assert passed[3][0] == "status"
    assert len(passed) == 4


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_owner_and_group_may_connect_to_a_status_socket(tmp_path: pathlib.Path, mask: int) -> None:
    """Whatever the umask is, which the command has as it was."""
    before = f"import os; os.umask({mask})"
    status = f"unix:{tmp_path}/status"
    done = run("--status", status, f"unix:{tmp_path}/socket", "sh", "-c", "umask", before=before)
    assert int(done.stdout, 8) == mask
    assert (tmp_path / "status").stat().st_mode & 0o7777 == 0o660
    assert (tmp_path / "socket").stat().st_mode & 0o7777 == 0o777 & ~mask


def test_errors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for words in ([address], ["--status", address, "127.0.0.1:0"]):
            done = run(*words, "true")
            assert (done.returncode, "somebody else has it" in done.stderr) == (1, True)
    for address in ("127.0.0.1:65536", "256.1.1.1:1", "[::1.2]:1", "unix:", ":" + "9" * 5000):
        with pytest.raises(AddressError):
            listening_socket(address, 1)
    for address in ("unix:" + "x" * 200, "unix:/no/such/directory/socket"):
        with pytest.raises(ListenError) as raised:
            listening_socket(address, 1)
        assert raised.type is ListenError


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_is_not_root_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        os.setuid(65534)
        assert main(["--user", "0", "127.0.0.1:0", "true"]) == 1
        words = "--user '0': Operation not permitted (only root may change)"
        assert capsys.readouterr().err == f"sniproxy-listen: {words}\n"

    in_child(work)


def test_any_address_takes_both_families() -> None:
    with listening_socket(":0", 5) as listening:
        port = listening.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), 20).close()
    for spelling in ("[::]:0", "[0::0]:0", "[0:0:0:0:0:0:0.0.0.0]:0", "*:0"):
        with listening_socket(spelling, 5) as listening:
            assert listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0


def test_an_ipv6_address_takes_no_ipv4_clients() -> None:
    with listening_socket("[::1]:0", 5) as listening:
        assert listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_the_command_gets_clean_hands() -> None:
    """No descriptor but standard ones, and no signal ignored because Python ignores it."""
    show = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
    done = run("127.0.0.1:0", sys.executable, "-c", show)
    assert done.stdout == "[0, 1, 2, 3]\n"  # 3 is the listing's own
    done = run("127.0.0.1:0", "grep", "SigIgn", "/proc/self/status")
    ignored = int(done.stdout.split()[1], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not ignored & 1 << (number - 1)


def test_the_command_is_told_that_nobody_else_has_the_socket() -> None:
    for addresses in (["127.0.0.1:0"], ["127.0.0.1:0", "[::1]:0"]):
        done = run(*addresses, "sh", "-c", f'echo $$ "${listen.BOUND_BY}"')
        pid, told = done.stdout.split()
        assert pid == told


def test_with_standard_descriptors_closed(tmp_path: pathlib.Path) -> None:
    """The sockets may then have low numbers of their own: still each arrives where it should."""
    out = tmp_path / "out"
    words = [sys.executable, "-c", PROGRAM, "127.0.0.1:0", "[::1]:0", "--", sys.executable]
    words += ["-W", "ignore", "-c", SHOW.replace("print(", "open(sys.argv[1], 'w').write(")]
    script = '"$@" <&- >&- 2>&-'
    subprocess.run(["/bin/sh", "-c", script, "sh", *words, str(out)], check=True, timeout=60)
    mine, names, _ = json.loads(out.read_text())
    assert mine
    assert [name[0] for name in names] == ["127.0.0.1", "::1"]


SHUT = """
import os, sys
sys.modules.pop("warnings", None)  # as in Python 3.13, where nothing has needed it before

class Shut:
    def find_spec(self, name, path=None, target=None):
        raise PermissionError(name)

become = os.setuid
def setuid(number):
    become(number)
    sys.meta_path.insert(0, Shut())
os.setuid = setuid
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_that_user_needs_no_file_of_pythons() -> None:
    """Python may be in a home directory that only its owner can enter."""
    done = run("--user", "nobody", "127.0.0.1:0", "id", "-u", before=SHUT)
    assert (done.stdout, done.stderr) == ("65534\n", "")
    done = run("--user", "nobody", "127.0.0.1:0", "/no/such/command", before=SHUT)
    assert (done.returncode, "no such command" in done.stderr) == (127, True)


@pytest.mark.parametrize("case", cases("sniproxy-listen"))
def test_transcript(case: str, play: Callable[[str], None]) -> None:
    play(case)
