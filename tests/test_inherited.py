"""The sockets that a process was started with, in processes of their own."""

import fcntl
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
    Listening,
    NoListeningSocket,
    bound_by_us,
    listening_sockets,
    pass_on,
    same_file,
    stored_parcels,
)
from sniproxy.process.parcel import Parcel
from sniproxy.tools import listen
from tests.processes import in_child

# What it found: the sockets' addresses, whether each is close-on-exec and which descriptor it has,
# which of 3 to 9 are still open, what is left of the convention's variables; or the refusal.
LOOK = """
import fcntl, json, os, socket, sys, warnings
warnings.simplefilter("ignore")
from sniproxy.process.inherited import NoListeningSocket, listening_sockets
try:
    listening = listening_sockets(os.environ)
    found = [one.socket for one in listening]
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
    "status": [one.status for one in listening],
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


def test_status_sockets_are_told_by_their_name() -> None:
    with socket.socket() as any_socket:
        for name in ("status", "sniproxy-status.socket", "status.socket", "status2", "", "proxy"):
            assert Listening(any_socket, name).status == (name == "status")
    assert not Listening(any_socket).status


def test_status_sockets_beside_standard_input(tcp: socket.socket) -> None:
    """Of the others, as ever, none is taken: they are nobody's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as web,
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as other,
    ):
        names = "status:web:status"
        found = look([one, web, other], tcp, LISTEN_PID="PID", LISTEN_FDS="3", LISTEN_FDNAMES=names)
        assert isinstance(found, dict)
        taken = [one.getsockname()[:2] for one in (tcp, one, other)]
        assert [tuple(name[:2]) for name in found["names"]] == taken
        assert found["status"] == [False, True, True]
        assert found["inheritable"] == [False] * 3
        assert found["variables"] == []


def test_status_sockets_among_others(tcp: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        found = look(
            [tcp, second], LISTEN_PID="PID", LISTEN_FDS="2", LISTEN_FDNAMES="status:unknown"
        )
        assert isinstance(found, dict)
        assert found["status"] == [True, False]
        assert found["still"] == []


@pytest.mark.parametrize("count", [1, 2])
def test_status_sockets_alone_are_no_start(tcp: socket.socket, count: int) -> None:
    names = ":".join(["status"] * count)
    found = look([tcp] * count, LISTEN_PID="PID", LISTEN_FDS=str(count), LISTEN_FDNAMES=names)
    assert str(found).startswith("standard input is not a listening socket (")
    assert ", and all that were passed besides are status sockets: start sniproxy" in str(found)


def test_a_status_socket_that_is_none_is_told(tcp: socket.socket) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        told = look([datagram], tcp, LISTEN_PID="PID", LISTEN_FDS="1", LISTEN_FDNAMES="status")
    assert "descriptor 3 is not a listening socket (a socket, but not of a stream)" in str(told)


def test_any_number_is_nothing_beside_standard_input(tcp: socket.socket) -> None:
    found = look([], tcp, LISTEN_PID="PID", LISTEN_FDS="999999999")
    assert isinstance(found, dict)
    assert found["names"] == [list(tcp.getsockname())]


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


# What the process before us has left.


_kept: list[socket.socket | int] = []
"""Objects whose numbers are somebody else's now: they must not be closed."""


def arrange(files: Sequence[socket.socket | int]) -> None:
    """Have them at descriptors 3, 4, …, and nothing behind them."""
    _kept.extend(files)
    high = [fcntl.fcntl(one, fcntl.F_DUPFD, 200) for one in files]
    os.closerange(3, 200)
    for target, source in enumerate(high, 3):
        os.dup2(source, target)
    os.closerange(200, 300)


def open_descriptors() -> list[int]:
    return [fd for fd in range(300) if same_file(fd, fd)]


def variables(*names: str, **others: str) -> dict[str, str]:
    return {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(names)),
        "LISTEN_FDNAMES": ":".join(names),
        **others,
    }


def a_parcel() -> socket.socket:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender.send(b"message")
    sender.close()
    return receiver


def test_parcels_are_taken_off_the_end(tcp: socket.socket) -> None:
    def work() -> None:
        arrange([tcp, tcp, a_parcel(), a_parcel()])
        names = ("web", "", "sniproxy-parcel.12", "sniproxy-parcel.3")
        environment = variables(*names)
        parcels = stored_parcels(environment)
        assert [one.count for one in parcels] == [3, 12]
        for one in parcels:
            assert not one.socket.get_inheritable()
            assert one.socket.recv(10) == b"message"
        assert environment == variables("web", "")
        listening = listening_sockets(environment)
        assert len(listening) == 2
        # Each has one descriptor left.
        ours = [one.socket.fileno() for one in (*listening, *parcels)]
        assert set(open_descriptors()) == {0, 1, 2, *ours}

    in_child(work)


@pytest.mark.parametrize(
    "changed",
    [
        {"LISTEN_PID": "1"},
        {"LISTEN_PID": ""},
        {"LISTEN_FDS": "3"},
        {"LISTEN_FDS": ""},
        {"LISTEN_FDNAMES": ""},
        {"LISTEN_FDNAMES": "web:sniproxy-parcel"},
        {"LISTEN_FDNAMES": "sniproxy-parcel.1:web"},
    ],
)
def test_what_is_not_named_as_a_parcel_is_left_alone(
    tcp: socket.socket, changed: dict[str, str]
) -> None:
    def work() -> None:
        arrange([tcp, a_parcel()])
        environment = variables("web", "sniproxy-parcel.1", **changed)
        before = dict(environment)
        assert stored_parcels(environment) == []
        if environment["LISTEN_FDS"] == before["LISTEN_FDS"]:
            assert environment == before
        assert {3, 4} <= set(open_descriptors())

    in_child(work)


def test_what_is_named_as_a_parcel_and_is_none_is_closed(tcp: socket.socket) -> None:
    def work() -> None:
        reader, _ = os.pipe()
        stream, _other = socket.socketpair()
        arrange([tcp, stream, reader, a_parcel()])
        os.dup2(3, 7)
        # One of them is not even open: the last.
        names = ("web", *["sniproxy-parcel.5"] * 3, "sniproxy-canary", "sniproxy-parcel.9")
        environment = variables(*names)
        (parcel,) = stored_parcels(environment)
        assert (parcel.count, parcel.socket.recv(10)) == (5, b"message")
        assert environment == variables("web")
        assert set(open_descriptors()) == {0, 1, 2, 3, parcel.socket.fileno()}

    in_child(work)


@pytest.mark.parametrize("names", ["", "web", "web:web6", "a:b:c"])
@pytest.mark.parametrize("parcels", [0, 3])
def test_what_is_passed_on_is_found_again(tcp: socket.socket, names: str, parcels: int) -> None:
    def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as second:
            sockets = [tcp.dup(), second.dup()]
        labels = names.split(":") if names.count(":") == 1 else ["unknown"] * 2
        listening = [Listening(*one) for one in zip(sockets, labels, strict=True)]
        addresses = [one.getsockname() for one in sockets]
        held = [Parcel(a_parcel(), count) for count in range(parcels)]
        environment: dict[str, str] = {"HOME": "/"}
        os.closerange(100, 300)
        pass_on(environment, listening, [], held)
        found = stored_parcels(environment)
        assert [one.count for one in found] == list(range(parcels))[::-1]
        assert all(one.socket.recv(10) == b"message" for one in found)
        again = listening_sockets(environment)
        assert [one.socket.getsockname() for one in again] == addresses
        assert [one.name for one in again] == labels
        assert environment == {"HOME": "/"}

    in_child(work)


@pytest.mark.parametrize("standard", [[0], [0, 1], [0, 1, 2]])
def test_standard_descriptors_are_as_they_were(tcp: socket.socket, standard: list[int]) -> None:
    def work() -> None:
        inode = os.fstat(tcp.fileno())
        environment: dict[str, str] = {}
        for fd in (0, 1, 2):
            os.dup2(os.open("/dev/null", os.O_RDWR), fd)
        pass_on(environment, [Listening(tcp.dup())], standard, [Parcel(a_parcel(), 8)])
        assert [fd for fd in (0, 1, 2) if os.path.samestat(os.fstat(fd), inode)] == standard
        assert all(os.get_inheritable(fd) for fd in (*standard, 3))
        (parcel,) = stored_parcels(environment)
        assert parcel.socket.recv(10) == b"message"
        (listening,) = listening_sockets(environment)
        assert os.path.samestat(os.fstat(listening.socket.fileno()), inode)

    in_child(work)


@pytest.mark.parametrize("standard", [[], [0], [0, 1, 2]])
def test_status_sockets_are_passed_on(
    tcp: socket.socket, standard: list[int], tmp_path: pathlib.Path
) -> None:
    def work() -> None:
        for fd in (0, 1, 2):
            os.dup2(os.open("/dev/null", os.O_RDWR), fd)
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(f"{tmp_path}/status")
        unix.listen()
        address = tcp.getsockname()
        environment: dict[str, str] = {}
        passed = [Listening(tcp.dup()), Listening(unix, "status")]
        pass_on(environment, passed, standard, [Parcel(a_parcel(), 8)])
        assert [one.count for one in stored_parcels(environment)] == [8]
        found = listening_sockets(environment)
        assert [one.socket.getsockname() for one in found] == [address, f"{tmp_path}/status"]
        assert [one.status for one in found] == [False, True]

    in_child(work)


def test_an_output_that_is_the_socket_does_not_make_it_the_input(tcp: socket.socket) -> None:
    def work() -> None:
        os.dup2(os.open("/dev/null", os.O_RDWR), 0)
        environment: dict[str, str] = {}
        address = tcp.getsockname()
        pass_on(environment, [Listening(tcp.dup(), "web")], [1], [Parcel(a_parcel(), 8)])
        assert len(stored_parcels(environment)) == 1
        (listening,) = listening_sockets(environment)
        assert (listening.socket.getsockname(), listening.name) == (address, "web")

    in_child(work)
