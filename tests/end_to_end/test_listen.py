"""sniproxy-listen from outside: what it binds, whom it becomes, and which program it runs."""

import errno
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import TIMEOUT, directory_name
from tests.processes import forbid

SHOW = """
import json, socket, sys
with open(sys.argv[1], "w") as out:
    out.write(json.dumps(socket.socket(fileno=0).getsockname()))
"""

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def run(
    *words: str | pathlib.Path, preexec: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=TIMEOUT, preexec_fn=preexec
    )


def without_ipv6() -> None:
    """Have socket(2) say what it says where the kernel has no IPv6."""
    forbid("socket", errno.EAFNOSUPPORT, socket.AF_INET6)


@pytest.mark.parametrize("address", [":0", "*:0"])
def test_all_addresses_are_those_of_ipv4_where_there_is_no_ipv6(
    listen: pathlib.Path, address: str, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    done = run(listen, address, sys.executable, "-c", SHOW, out, preexec=without_ipv6)
    assert done.stderr == f"sniproxy-listen: {address!a}: IPv4 only: there is no IPv6 here\n"
    assert json.loads(out.read_text())[0] == "0.0.0.0"


@only_root
def test_all_addresses_where_ipv6_is_switched_off(listen: pathlib.Path) -> None:
    """By sysctl, as many do: the kernel takes the socket all the same, and IPv4 clients come."""
    switch = "for one in all lo; do echo 1 > /proc/sys/net/ipv6/conf/$one/disable_ipv6; done"
    connect = "import socket; socket.create_connection(('127.0.0.1', 4433))"
    script = f'{switch}; ip link set lo up; exec "$@"'
    words = ["unshare", "--net", "sh", "-ec", script, "sh"]
    done = run(*words, listen, ":4433", sys.executable, "-c", connect)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("address", "family"), [("[::]:0", socket.AF_INET6), ("127.0.0.1:0", socket.AF_INET)]
)
def test_a_socket_that_the_kernel_refuses_is_no_matter_of_the_directory(
    listen: pathlib.Path, address: str, family: int
) -> None:
    for error, hint in (
        (errno.EAFNOSUPPORT, " (there are no sockets of that kind here)"),
        (errno.EMFILE, ""),
        (errno.ENOBUFS, ""),
    ):
        done = run(listen, address, "true", preexec=lambda: forbid("socket", error, family))  # noqa: B023
        words = f"{address!a}: can't listen: {os.strerror(error)}{hint}"
        assert (done.returncode, done.stderr) == (1, f"sniproxy-listen: {words}\n")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_one_socket_with_standard_input_closed(
    listen: pathlib.Path, closed: str, tmp_path: pathlib.Path
) -> None:
    """The socket may then have the number already that it is to have, but close-on-exec."""
    out = tmp_path / "out"
    words = [str(listen), "127.0.0.1:0", sys.executable, "-c", SHOW, str(out)]
    done = run("/bin/sh", "-c", f'exec "$@" {closed}', "sh", *words)
    assert (done.returncode, json.loads(out.read_text())[0]) == (0, "127.0.0.1")


def test_several_sockets_and_too_few_descriptors(listen: pathlib.Path) -> None:
    """There is room for them as they are bound, and none to move them to where they belong."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))

    done = run(listen, "127.0.0.1:0", "127.0.0.1:0", "true", preexec=limit)
    assert done.stderr.startswith("sniproxy-listen: can't pass 2 sockets on: "), done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.fixture
def places(listen: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Have programs beside sniproxy-listen, and somebody else's with their names before it."""
    (tmp_path / "others").mkdir()
    for folder in ("others", "ours"):
        for name in ("sniproxy", "command"):
            program = tmp_path / folder / name
            program.write_text(f'#!/bin/sh\necho {folder} "$@"\n')
            program.chmod(0o755)
    (tmp_path / "sniproxy-listen").symlink_to(listen)
    return tmp_path


@pytest.mark.parametrize(
    "call", ["$PWD/ours/sniproxy-listen", "ours/sniproxy-listen", "sniproxy-listen"]
)
@pytest.mark.parametrize(("command", "place"), [("sniproxy", "ours"), ("command", "others")])
def test_sniproxy_is_the_one_beside_us(
    places: pathlib.Path, call: str, command: str, place: str
) -> None:
    """And not one that PATH has before it, also from another directory; others are as ever."""
    script = f'cd "$0" && PATH=$PWD/others:$PWD/ours:$PATH && {call} --directory / 127.0.0.1:0 '
    done = run("/bin/sh", "-c", script + f"{command} --help", places)
    assert (done.stdout, done.stderr) == (f"{place} --help\n", "")


def test_sniproxy_is_the_one_to_which_the_links_lead(
    places: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    script = 'cd "$0" && PATH=$PWD/others:$PATH && ./sniproxy-listen 127.0.0.1:0 sniproxy --help'
    done = run("/bin/sh", "-c", script, places)
    # The link beside the script leads to nothing further, that beside the executable to itself.
    source = request.config.getoption("--sniproxy") is None
    assert done.stdout.startswith("ours --help\n" if source else "usage: sniproxy "), done.stderr


USERS = """\
root:x:0:0::/:/bin/sh
proxy:x:2001:2002::/:/bin/sh
other:x:2003:2004::/:/bin/sh
"""

GROUPS = """\
root:x:0:
one:x:3001:other,proxy
two:x:3002:other
three:x:3003:proxy
four:x:2002:proxy
many:x:3004:{many},proxy
five:x:3005:proxyman,pro,xproxy
six:x:3006
seven
eight:x:none:proxy
"""
"""The last ones are none that list anybody."""


@only_root
@pytest.mark.parametrize(
    ("user", "numbers"),
    [
        ("proxy", ["2001", "2002", "2002 3001 3003 3004"]),
        ("2001", ["2001", "2002", "2002 3001 3003 3004"]),
        ("other", ["2003", "2004", "2004 3001 3002"]),
        ("12345", ["12345", "12345", "12345"]),
    ],
)
def test_the_user_s_groups_come_along(
    listen: pathlib.Path, user: str, numbers: list[str], tmp_path: pathlib.Path
) -> None:
    """As with User= of systemd, so that a check and a service reach the same."""
    (tmp_path / "passwd").write_text(USERS)
    many = ",".join(f"user{number}" for number in range(10_000))
    (tmp_path / "group").write_text(GROUPS.format(many=many))
    script = 'for one in passwd group; do mount --bind $0/$one /etc/$one; done; exec "$@"'
    words = ["unshare", "--mount", "setpriv", "--groups", "4001", "sh", "-ec", script, tmp_path]
    words += [listen, "--user", user, "127.0.0.1:0", "sh", "-c", "id -u; id -g; id -G"]
    done = run(*words)
    assert (done.stdout.splitlines(), done.stderr) == (numbers, "")


@only_root
@pytest.mark.parametrize(
    ("user", "mode", "status"), [("proxy", 0o710, 0), ("proxy", 0o700, 1), ("two", 0o710, 1)]
)
@pytest.mark.parametrize("rights", [[], ["setpriv", "--securebits", "+no_setuid_fixup"]], ids=len)
def test_a_check_reaches_what_the_user_s_groups_do(
    listen: pathlib.Path,
    hashed: bool,
    rights: list[str],
    user: str,
    mode: int,
    status: int,
    tmp_path: pathlib.Path,
) -> None:
    """The check goes on as that user in its own process."""
    (tmp_path / "passwd").write_text(USERS + "two:x:2005:2006::/:/bin/sh\n")
    (tmp_path / "group").write_text(GROUPS)
    hosts = tmp_path / "hosts"
    directory = hosts / directory_name(hashed, "a.example")
    directory.mkdir(parents=True)
    tmp_path.chmod(0o755)
    directory.chmod(mode)
    os.chown(directory, 0, 3001)
    script = 'for one in passwd group; do mount --bind $0/$one /etc/$one; done; exec "$@"'
    words = ["unshare", "--mount", "sh", "-ec", script, tmp_path, *rights]
    with socket.socket(socket.AF_UNIX) as backend:
        backend.bind(str(directory / "tls-socket"))
        (directory / "tls-socket").chmod(0o666)
        backend.listen()
        done = run(*words, listen.with_name("sniproxy-check"), "--user", user, hosts)
    assert done.returncode == status, done.stdout + done.stderr


@only_root
def test_a_user_may_be_in_many_groups(listen: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "passwd").write_text(USERS)
    lines = (f"group{number}:x:{number}:proxy" for number in range(5000, 6000))
    (tmp_path / "group").write_text("\n".join(lines))
    script = 'for one in passwd group; do mount --bind $0/$one /etc/$one; done; exec "$@"'
    words = ["unshare", "--mount", "sh", "-ec", script, tmp_path]
    done = run(*words, listen, "--user", "proxy", "127.0.0.1:0", "id", "-G")
    assert done.stdout.split() == ["2002", *map(str, range(5000, 6000))]


@only_root
@pytest.mark.parametrize(
    "rights",
    [
        ["--inh-caps", "+chown"],
        ["--inh-caps", "+chown", "--ambient-caps", "+chown"],
        ["--securebits", "+no_setuid_fixup"],
        ["--securebits", "+no_setuid_fixup,+no_setuid_fixup_locked", "--inh-caps", "+chown"],
        ["--reuid", "4321", "--inh-caps", "+setuid,+setgid", "--ambient-caps", "+setuid,+setgid"],
    ],
    ids=" ".join,
)
def test_no_capability_is_left_to_the_user(
    listen: pathlib.Path, rights: list[str], tmp_path: pathlib.Path
) -> None:
    tmp_path.chmod(0o755)
    words = ["setpriv", *rights, listen, "--user", "nobody", "127.0.0.1:0"]
    done = run(*words, "grep", "^Cap[^B]", "/proc/self/status")
    assert done.stdout.split()[1::2] == ["0" * 16] * 4, done.stdout + done.stderr
