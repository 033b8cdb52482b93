"""What sniproxy-check says of each kind of entry."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sniproxy.tools.check import main
from tests.end_to_end.harness import Backend
from tests.processes import in_child


@pytest.fixture
def hosts(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Enter a hosts directory, and leave it at the end."""
    before = pathlib.Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def listen(directory: pathlib.Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    directory.mkdir()
    listening = socket.socket(socket.AF_UNIX, kind)
    listening.bind(str(directory / "tls-socket"))
    if kind == socket.SOCK_STREAM:
        listening.listen()
    return listening


def look(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]]]:
    status = main(["--json", "."])
    return status, {one["name"]: one for one in json.loads(capsys.readouterr().out)}


def test_all_is_well(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen(hosts / "a.example"), listen(hosts / "b.example"):
        (hosts / "b.example" / "send-proxy-v2").touch()
        (hosts / "etc").mkdir()
        status, found = look(capsys)
    assert status == 0
    assert set(found) == {"a.example", "b.example"}
    assert found["a.example"]["accepts"]
    assert found["a.example"]["backend_pid"] == os.getpid()
    assert (found["a.example"]["proxy_header"], found["b.example"]["proxy_header"]) == (
        "none",
        "v2",
    )


def test_each_problem_is_named(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    listen(hosts / "dead.example").close()
    datagram = listen(hosts / "datagram.example", socket.SOCK_DGRAM)
    listen(hosts / "Upper.example").close()
    (hosts / "empty.example").mkdir()
    (hosts / "file.example").touch()
    (hosts / "a_b").mkdir()
    (hosts / "dangling.example").symlink_to("nowhere")
    (hosts / "loop.example").symlink_to("loop.example")
    (hosts / "absolute.example").symlink_to(hosts / "dead.example")
    (hosts / "text.example").mkdir()
    (hosts / "text.example" / "tls-socket").touch()
    status, found = look(capsys)
    datagram.close()
    expected = {
        "dead.example": "nothing listens",
        "datagram.example": "wrong type",
        "Upper.example": "rename it to upper.example",
        "empty.example": "there is no tls-socket",
        "file.example": "not a directory",
        "a_b": "can never be asked for",
        "dangling.example": "dangling link",
        "loop.example": "in a circle",
        "absolute.example": "use dead.example",
        "text.example": "is no socket",
    }
    assert status == 1
    assert set(found) == set(expected)
    for name, words in expected.items():
        assert words in str(found[name]["problems"]), name


def test_table_and_usage(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hosts / "e\x1b[31m").mkdir()
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "1 hosts, 0 well, 1 not" in out
    assert main(["/no/such/directory"]) == 2
    words = f"uid {os.geteuid()} can't look into it: No such file or directory\n"
    assert capsys.readouterr() == ("", f"sniproxy-check: '/no/such/directory': {words}")


def test_links(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links are followed as the kernel does, wherever on the way to the socket they are."""
    with listen(hosts / "real.example"):
        (hosts / "linked.example").symlink_to("real.example")
        (hosts / "deep").mkdir()
        (hosts / "deep" / "host").mkdir()
        (hosts / "deep" / "socket").symlink_to("../real.example/tls-socket")
        # Relative to where the directory is, not to the link that led there.
        (hosts / "deep" / "host" / "tls-socket").symlink_to("../socket")
        (hosts / "through.example").symlink_to("deep/host")
        (hosts / "middle").symlink_to(hosts / "deep")
        (hosts / "late.example").symlink_to("middle/host")
        # A link that lies deeper than what leads there.
        (hosts / "deep" / "absolute").symlink_to(hosts / "deep" / "host")
        (hosts / "nested.example").symlink_to("deep/../deep/absolute")
        (hosts / "outside.example").symlink_to(f"../{hosts.name}/../elsewhere")
        (hosts / "swap.example").mkdir()
        (hosts / "swap.example" / "tls-socket").symlink_to("gone.sock")
        status, found = look(capsys)
    assert status == 1
    for name in ("linked.example", "through.example"):
        assert found[name]["accepts"], found[name]
        assert (found[name]["problems"], found[name]["notes"]) == ([], [])
    assert found["late.example"]["accepts"]
    assert found["late.example"]["problems"] == [
        "middle is an absolute link: it leads elsewhere inside a chroot, use deep"
    ]
    assert found["nested.example"]["problems"] == [
        "deep/absolute is an absolute link: it leads elsewhere inside a chroot, use host"
    ]
    notes = found["outside.example"]["notes"]
    assert notes == [f"a link leads out of the hosts directory: {hosts.parent}/elsewhere"]
    assert found["swap.example"]["problems"] == [
        "swap.example/tls-socket is a dangling link: there is no swap.example/gone.sock"
    ]


def test_a_full_queue_is_a_note(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hosts / "busy.example").mkdir()
    backend = Backend(hosts / "busy.example", backlog=0)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect("busy.example/tls-socket")
        status, found = look(capsys)
    backend.close()
    assert status == 0
    assert found["busy.example"]["accepts"]
    assert "queue is full" in str(found["busy.example"]["notes"])


def test_headers(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen(hosts / "both.example"), listen(hosts / "one.example"):
        for version in (1, 2):
            (hosts / "both.example" / f"send-proxy-v{version}").touch()
        (hosts / "one.example" / "send-proxy-v1").mkdir()
        (hosts / "one.example" / "send-proxy-v2").symlink_to("nowhere")
        status, found = look(capsys)
    assert status == 0
    assert found["both.example"]["proxy_header"] == "v2"
    assert "send-proxy-v2 wins" in str(found["both.example"]["notes"])
    assert found["one.example"]["proxy_header"] == "v1"
    assert found["one.example"]["notes"] == [
        "send-proxy-v2 is a dangling link: it counts as absent"
    ]


def test_links_to_headers(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A header that is there outside a chroot may be absent inside."""
    with listen(hosts / "a.example"), listen(hosts / "b.example"), listen(hosts / "c.example"):
        (hosts / "header").touch()
        (hosts / "a.example" / "send-proxy-v2").symlink_to(hosts / "header")
        (hosts / "b.example" / "send-proxy-v1").symlink_to(f"../../{hosts.name}/header")
        (hosts / "b.example" / "send-proxy-v2").symlink_to("../../no-such-file")
        (hosts / "c.example" / "send-proxy-v1").symlink_to("../header")
        # What is wrong with the way to the directory is said once.
        (hosts / "d.example").symlink_to(hosts / "a.example")
        status, found = look(capsys)
    absolute = "is an absolute link: it leads elsewhere inside a chroot, use"
    assert status == 1
    assert found["a.example"]["problems"] == [f"a.example/send-proxy-v2 {absolute} ../header"]
    assert found["b.example"]["notes"] == [
        f"a link leads out of the hosts directory: {hosts.parent}/no-such-file",
        "send-proxy-v2 is a dangling link: it counts as absent",
    ]
    assert (found["c.example"]["problems"], found["c.example"]["notes"]) == ([], [])
    assert found["d.example"]["problems"] == [f"d.example {absolute} a.example"]


def test_odd_names(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a directory entry may be called is listed once, and can be read by any program."""
    long = ".".join(["b" * 60] * 4)
    with listen_by_short_name(hosts / long):
        names = [b"\xff\xfe", b"a\nb", b"b\xc3\xbccher.example", b"-", b"x" * 255, b"lost+found"]
        for name in names:
            os.mkdir(os.fsencode(hosts) + b"/" + name)
        status, found = look(capsys)
    assert status == 1
    assert set(found) == {
        long, "\\xff\\xfe", "a\\x0ab", "bücher.example", "-", "x" * 255, "lost+found"
    }  # fmt: skip
    assert found[long]["accepts"]
    assert "rename it to xn--bcher-kva.example" in str(found["bücher.example"]["problems"])
    assert not any(one["asked_for"] for name, one in found.items() if name != long)
    assert main([]) == 1
    assert capsys.readouterr().out.count("\n") == 8


def listen_by_short_name(directory: pathlib.Path) -> socket.socket:
    directory.mkdir()
    backend = Backend(directory)
    return backend.listening


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from sniproxy.commands import sniproxy_check as c; sys.exit(c())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
def test_permission_is_that_of_the_user(hosts: pathlib.Path) -> None:
    with listen(hosts / "shut.example"), listen(hosts / "mute.example"), listen(hosts / "a.b"):
        # Everybody may come as far as the hosts directory.
        for parent in hosts.parents[:-2]:
            parent.chmod(parent.stat().st_mode | 0o111)
        hosts.chmod(0o755)
        (hosts / "shut.example").chmod(0o700)
        (hosts / "mute.example" / "tls-socket").chmod(0o700)
        (hosts / "a.b" / "tls-socket").chmod(0o777)
        (hosts / "behind.example").symlink_to("shut.example/inner")
        (hosts / "Bücher.example").mkdir()
        as_root = run("--json")
        assert as_root.returncode == 1  # for the last two
        as_nobody = run("--json", "--user", "nobody", str(hosts))
        assert as_nobody.returncode == 1
        found = {one["name"]: one for one in json.loads(as_nobody.stdout)}
        assert found["a.b"]["problems"] == []
        assert found["a.b"]["backend_user"] == "root"
        denied = "permission denied to uid 65534: it lacks "
        assert found["shut.example"]["problems"] == [denied + "x on shut.example"]
        assert found["mute.example"]["problems"] == [denied + "w on tls-socket"]
        assert found["behind.example"]["problems"][0].startswith("permission denied")
        words = "is not canonical: rename it to xn--bcher-kva.example"
        assert words in found["Bücher.example"]["problems"]
        # sniproxy needs no right to list any directory.
        hosts.chmod(0o711)
        assert run("--json", "--user", "65534").stdout == as_nobody.stdout
        hosts.chmod(0o700)
        closed = run("--user", "65534")
        assert (closed.returncode, closed.stdout) == (2, "")
        words = "'.': uid 65534 can't look into it: Permission denied"
        assert closed.stderr == f"sniproxy-check: {words}\n"
    for user in ("no-such-user", "9" * 30, "9" * 5000):
        done = run("--user", user)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"sniproxy-check: --user {user!a}: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_become_another_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        os.setuid(65534)
        assert main(["--user", "0", "/"]) == 2
        assert "only root may change" in capsys.readouterr().err

    in_child(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
def test_links_are_seen_where_the_way_to_the_directory_is_shut(hosts: pathlib.Path) -> None:
    """The proxy is in the hosts directory already, and so are we."""
    (hosts / "shut" / "hosts").mkdir(parents=True)
    (hosts / "shut" / "hosts" / "a.example").symlink_to("/srv/a.example")
    (hosts / "shut").chmod(0o700)
    done = run("--user", "nobody", str(hosts / "shut" / "hosts"))
    assert "a.example is an absolute link" in done.stdout


def test_a_directory_that_is_none(hosts: pathlib.Path) -> None:
    (hosts / "file").touch()
    for name, words in (
        ("file", "Not a directory"),
        ("", "No such file"),
        ("x" * 5000, "too long"),
    ):
        done = run(name)
        assert done.returncode == 2
        assert words in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a jail")
def test_inside_a_jail_an_absolute_link_is_one_of_the_jail(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen(hosts / "real.example"):
        (hosts / "linked.example").symlink_to("/real.example")
        (hosts / "wrong.example").symlink_to(hosts / "real.example")
        # What leads there are the names of the commands, before the start and after it.
        (hosts / "sniproxy").touch()
        (hosts / "sniproxy-check").symlink_to("sniproxy")
        (hosts / "sniproxy-listen").symlink_to("no-longer-there")

        def work() -> None:
            os.chroot(".")
            os.chdir("/")
            _, found = look(capsys)
            well = [name for name, one in found.items() if not one["problems"]]
            assert well == ["linked.example", "real.example"]
            assert set(found) == {*well, "wrong.example"}

        in_child(work)


def test_a_host_may_be_called_like_a_command(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hosts / "sniproxy").mkdir()
    with listen(hosts / "sniproxy-check"):
        status, found = look(capsys)
    assert (status, set(found)) == (1, {"sniproxy", "sniproxy-check"})
    assert found["sniproxy-check"]["accepts"]


def test_an_empty_directory_is_well(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == "0 hosts, 0 well, 0 not\n"
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
