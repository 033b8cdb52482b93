"""The sockets that a process was started with, in processes of their own."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

from sniproxy.process.inherited import (
    BOUND_BY,
    NoListeningSocket,
    bound_by_us,
    listening_sockets,
    same_file,
)
from sniproxy.tools import listen

# What it found: the sockets' addresses, whether each is close-on-exec and which descriptor it has,
# which of 3 to 9 are still open, what is left of the convention's variables; or the refusal.
LOOK = """
import fcntl, json, os, socket, sys, warnings
warnings.simplefilter("ignore")
from sniproxy.process.inherited import NoListeningSocket, listening_sockets
try:
    found = listening_sockets(os.environ)
except NoListeningSocket as error:
    print(json.dumps(str(error)))
    sys.exit()
ours = [one.fileno() for one in found]
still = [fd for fd in range(3, 10) if fd not in ours and os.path.lexists(f"/proc/self/fd/{fd}")
         and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")]
print(json.dumps({
    "names": [one.getsockname() for one in found],
    "inheritable": [one.get_inheritable() for one in found],
    "still": still,
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
    "blocking": [one.getblocking() for one in found],
}))
"""


def look(
    sockets: Sequence[socket.socket], stdin: object = subprocess.DEVNULL, **variables: str
) -> object:
    """Pass sockets as descriptors 3, 4, … and say what the program makes of them.

    A value of ``PID`` becomes the program's own process id.
    """
    script = "".join(
        f"export {name}={'$$' if value == 'PID' else repr(value)}; "
        for name, value in variables.items()
    )
    numbers = [one.fileno() for one in sockets]
    # The shell moves them to where they belong; numbers from 100 on are out of its way.
    moved = [os.dup2(fd, 100 + at) for at, fd in enumerate(numbers)]
    place = "".join(f"{3 + at}<&{100 + at} {100 + at}<&- " for at in range(len(numbers)))
    words = ["/bin/bash", "-c", f'{script} exec "$@" {place}', "sh", sys.executable, "-c", LOOK]
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            words, stdin=stdin, capture_output=True, pass_fds=moved, timeout=60, check=True
        )
    finally:
        for fd in moved:
            os.close(fd)
    return json.loads(done.stdout)


@pytest.fixture
def tcp() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_no_sockets_at_all() -> None:
    for none in ("0", "00"):
        found = look([], LISTEN_PID="PID", LISTEN_FDS=none)
        assert "standard input is not a listening socket" in str(found)


def test_standard_input(tcp: socket.socket, tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        for listening in (tcp, unix):
            found = look([], listening)
            assert isinstance(found, dict)
            name = listening.getsockname()
            assert found["names"] == [list(name) if isinstance(name, tuple) else name]
            assert found["inheritable"] == [False]


def test_the_convention(tcp: socket.socket) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as second:
        found = look([tcp, second], LISTEN_PID="PID", LISTEN_FDS="2", LISTEN_FDNAMES="web:web6")
        assert isinstance(found, dict)
        assert [name[:2] for name in found["names"]] == [
            list(tcp.getsockname()),
            list(second.getsockname()[:2]),
        ]
        assert found["inheritable"] == [False, False]
        assert found["still"] == []
        assert found["variables"] == []


def test_standard_input_comes_first(tcp: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        found = look([second], tcp, LISTEN_PID="PID", LISTEN_FDS="1")
        assert isinstance(found, dict)
        assert found["names"] == [list(tcp.getsockname())]
        assert found["variables"] == []


@pytest.mark.parametrize(
    ("pid", "fds", "words"),
    [
        ("1", "1", "standard input is not a listening socket"),
        ("PID", "0", "standard input is not a listening socket"),
        ("PID", "", "standard input is not a listening socket"),
        ("", "1", "standard input is not a listening socket"),
        ("PID", "one", "LISTEN_FDS is 'one': expected a number"),
        ("PID", "-1", "LISTEN_FDS is '-1': expected a number"),
        ("PID", "9" * 5000, ": expected a number"),
        ("PID", "2", "LISTEN_FDS is 2, but descriptor 4 is not a listening socket"),
        ("PID", "999999999", "but descriptor 4 is not a listening socket"),
    ],
)
def test_refusals(tcp: socket.socket, pid: str, fds: str, words: str) -> None:
    told = look([tcp], LISTEN_PID=pid, LISTEN_FDS=fds)
    assert isinstance(told, str)
    assert words in told
    assert "\n" not in told


def test_what_is_no_listening_stream_socket() -> None:
    one, other = socket.socketpair()
    with (
        one,
        other,
        socket.socket() as bound,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink,
    ):
        bound.bind(("127.0.0.1", 0))
        for stdin, reason in (
            (subprocess.DEVNULL, "socket operation on non-socket"),
            (one, "it does not listen"),
            (bound, "it does not listen"),
            (datagram, "not of a stream"),
            (netlink, "a socket of family"),
        ):
            told = look([], stdin)
            assert isinstance(told, str)
            assert told.startswith("standard input is not a listening socket (")
            assert reason in told
            assert "sniproxy-listen 127.0.0.1:8443 sniproxy" in told
            assert told.endswith("manual: man 8 sniproxy")


def test_a_closed_standard_input_is_called_so() -> None:
    words = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", LOOK]
    done = subprocess.run(words, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout).startswith(
        "standard input is not a listening socket (it is closed): "
    )


def test_variables_are_removed_even_where_they_are_wrong() -> None:
    environment = {"LISTEN_PID": "x", "LISTEN_FDS": "y", "LISTEN_FDNAMES": "z", "HOME": "/"}
    with pytest.raises(NoListeningSocket):
        listening_sockets(environment)
    assert environment == {"HOME": "/"}


def test_who_has_bound_the_sockets() -> None:
    """Only this very process: its parent may have them still, and a child's are its parent's."""
    assert listen.BOUND_BY == BOUND_BY
    for value, ours in ((str(os.getpid()), True), (str(os.getppid()), False), ("", False)):
        environment = {BOUND_BY: value, "HOME": "/"}
        assert bound_by_us(environment) is ours
        assert environment == {"HOME": "/"}
    assert not bound_by_us({})


def test_same_file(tcp: socket.socket) -> None:
    copy = os.dup(tcp.fileno())
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert same_file(tcp.fileno(), copy)
        assert not same_file(tcp.fileno(), other.fileno())
    os.close(copy)
    assert not same_file(tcp.fileno(), copy)
