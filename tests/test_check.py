"""What sniproxy-check says of each kind of entry."""

import json
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from jsonschema import ValidationError, validate

from sniproxy.tools import check, unit
from sniproxy.tools.check import Check, main
from sniproxy.tools.way import MOST_LINKS, MOST_STEPS
from tests.end_to_end.harness import Backend, Proxy, commands, wait_for
from tests.processes import in_child


@pytest.fixture
def hosts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Enter a hosts directory, and leave it at the end."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listen(directory: pathlib.Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    directory.mkdir()
    listening = socket.socket(socket.AF_UNIX, kind)
    listening.bind(str(directory / "tls-socket"))
    if kind == socket.SOCK_STREAM:
        listening.listen()
    return listening


def look(
    capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, dict[str, object]]]:
    status = main(["--json", *options, "."])
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


SCHEMA = pathlib.Path(__file__).parents[1] / "docs" / "reference" / "check.schema.json"


def test_entries_that_serve_many(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        listen(hosts / "_.example"),
        listen(hosts / "_default"),
        listen(hosts / "_nosni"),
        listen(hosts / "a.example"),
        listen(hosts / "b.other"),
    ):
        for name in ("b.example", "c.example", "d.example", "e.example"):
            (hosts / name).symlink_to("a.example")
        (hosts / "dead.example").mkdir()
        (hosts / "a.example" / "wait-for-backend").touch()
        (hosts / "_.example" / "acme-tls-socket").symlink_to("tls-socket")
        status, found = look(capsys)
        assert main([]) == 1
    assert status == 1
    validate(list(found.values()), json.loads(SCHEMA.read_text()))
    table = capsys.readouterr().out
    assert {name: one["kind"] for name, one in found.items()} == {
        name: KINDS.get(name, "host") for name in found
    }
    for name in ("_default", "_nosni"):
        assert found[name]["shadows"] is None
    for name in ("_.example", "b.other"):
        assert found[name]["shadows"] == "_default"
    below = [f"{label}.example" for label in ("a", "b", "c", "d", "dead", "e")]
    assert found["_.example"]["shadowed_by"] == below
    assert "its place is taken for a.example, b.example, c.example, 3 others" in table
    assert "serves *.example" in table
    assert "serves every other name" in table
    assert "serves clients without a server name" in table
    # A host without a backend keeps its name.
    assert found["dead.example"]["problems"] == ["there is no tls-socket"]
    assert {found[name]["shadows"] for name in below} == {"_.example"}
    waiting = [name for name, one in found.items() if one["waits_for_backend"]]
    assert waiting == [name for name in below if name != "dead.example"]
    assert [name for name, one in found.items() if one["acme_socket"]] == ["_.example"]


def test_what_is_no_directory_leaves_its_name_to_the_wildcard(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hosts / "gone.example").symlink_to("nothing")
    (hosts / "file.example").touch()
    with listen(hosts / "_.example"), listen(hosts / "a.example"):
        (hosts / "linked.example").symlink_to("a.example")
        _, found = look(capsys)
    assert found["_.example"]["shadowed_by"] == ["a.example", "linked.example"]


KINDS = {"_.example": "wildcard", "_default": "default", "_nosni": "nosni"}


def test_each_entry_of_the_tests_fits_the_schema(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every kind, well or not; and the schema says no to something else."""
    (hosts / "README").touch()
    (hosts / "Upper.example").mkdir()
    (hosts / os.fsdecode(b"\xff\\.example")).mkdir()
    (hosts / "_default").symlink_to("nothing")
    (hosts / "a.example").mkdir()
    (hosts / "a.example" / "acme-tls-socket").touch()
    (hosts / "a.example" / "send-proxy-v1").touch()
    with listen(hosts / "b.example"):
        _, found = look(capsys)
    schema = json.loads(SCHEMA.read_text())
    validate(list(found.values()), schema)
    assert "acme-tls-socket is no socket" in str(found["a.example"]["problems"])
    assert set(schema["items"]["properties"]) == set(found["a.example"])
    for change in ({"kind": "none"}, {"more": 1}, {"proxy_header": "v3"}):
        with pytest.raises(ValidationError):
            validate([found["b.example"] | change], schema)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
def test_who_may_not_serve_many(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chown(hosts, 4321, -1)
    for name, owner in (("_.a", 0), ("_.b", 4321), ("_.c", 4322), ("_.d", 65534)):
        with listen(hosts / name):
            os.chown(hosts / name, owner, -1)
    (hosts / "_default").symlink_to("_.a")
    os.lchown(hosts / "_default", 4322, -1)
    (hosts / "_nosni").symlink_to("_.c")
    (hosts / "_.a").chmod(0o777)
    _, found = look(capsys)

    def passed_over(name: str) -> str:
        said = [one for one in found[name]["problems"] if "passed over" in one]  # type: ignore[attr-defined]
        return said[0] if said else ""

    assert not passed_over("_.b")
    assert "others may write to it" in passed_over("_.a")
    assert passed_over("_.c") == (
        "is passed over: it belongs to 4322, and not to root or the owner of the hosts directory"
    )
    assert "who may be anybody" in passed_over("_.d")
    assert "the link belongs to 4322" in passed_over("_default")
    assert "it belongs to 4322" in passed_over("_nosni")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
@pytest.mark.parametrize("private", ["yes", "no"])
def test_whom_the_unit_cannot_tell_from_others(
    hosts: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    private: str,
) -> None:
    said = {"RootDirectory": str(hosts), "PrivateUsers": private, "User": "daemon"}
    monkeypatch.setattr(check, "service_settings", lambda: said)
    os.chown(hosts, 4321, -1)
    with listen(hosts / "_default"):
        os.chown(hosts / "_default", 4321, -1)
        status, found = look(capsys)
        assert status == (private == "yes")
        assert ("PrivateUsers=" in str(found["_default"]["problems"])) == (private == "yes")
        daemon = pwd.getpwnam("daemon").pw_uid
        for owner in (0, daemon):
            for path in (hosts, hosts / "_default"):
                os.chown(path, owner, -1)
            assert look(capsys)[0] == 0
        # Who says that it is another root speaks of no such unit.
        os.chown(hosts, 4321, -1)
        os.chown(hosts / "_default", 4321, -1)
        assert look(capsys, "--root", str(hosts))[0] == (private == "yes")
        assert look(capsys, "--root", "/")[0] == 0


def test_many_are_well(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What one entry may cost is not taken from the others."""
    with listen(hosts / "a.example"):
        for number in range(MOST_STEPS // 3):
            (hosts / f"{number}.example").symlink_to("a.example")
        assert look(capsys)[0] == 0


def test_each_problem_is_named(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    listen(hosts / "dead.example").close()
    datagram = listen(hosts / "datagram.example", socket.SOCK_DGRAM)
    listen(hosts / "Upper.example").close()
    (hosts / "empty.example").mkdir()
    (hosts / "file.example").touch()
    (hosts / "_a").mkdir()
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
        "_a": "can never be asked for",
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


PROGRAM = "import sys; from sniproxy.commands import sniproxy_check as c; sys.exit(c())"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        check=False,
        capture_output=True,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
        timeout=60,
        env=os.environ | environment,
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


@pytest.fixture
def jail(hosts: pathlib.Path) -> Iterator[pathlib.Path]:
    """Fill a hosts directory with links that a root directory turns, and some that it does not."""
    outside = listen(hosts.parent / f"{hosts.name}-outside")
    name = outside.getsockname()
    with listen(hosts / "real.example"), outside:
        for host, target in {
            "absolute": "/real.example/tls-socket",
            "clamped": "../../../real.example/tls-socket",
            "relative": "../real.example/tls-socket",
            "own-path": f"{hosts}/real.example/tls-socket",
            "outside": name,
            "climbs": os.path.relpath(name, hosts / "climbs"),
        }.items():
            (hosts / host).mkdir()
            (hosts / host / "tls-socket").symlink_to(target)
        yield hosts
    shutil.rmtree(f"{hosts}-outside")


WELL_IN_THE_JAIL = {"real.example", "absolute", "clamped", "relative"}


def test_a_root_directory(jail: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is well is what a proxy in there can connect to, and no advice leads out."""
    status, found = look(capsys, "--root", str(jail))
    assert status == 1
    assert {name for name, one in found.items() if not one["problems"]} == WELL_IN_THE_JAIL
    assert all(found[name]["accepts"] and not found[name]["notes"] for name in WELL_IN_THE_JAIL)
    words = "own-path/tls-socket is an absolute link: it leads elsewhere inside a chroot, use"
    assert found["own-path"]["problems"] == [f"{words} ../real.example/tls-socket"]
    for name in ("outside", "climbs"):
        (problem,) = found[name]["problems"]  # type: ignore[misc]
        assert problem.startswith(f"{name}/tls-socket is a dangling link: there is no ")
        assert problem.endswith(f" in the root directory {jail}, and no link leads out of it")
    assert main(["--root", str(jail)]) == 1
    assert capsys.readouterr().out.endswith(f"7 hosts, 4 well, 3 not, seen inside {jail}\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a jail")
def test_a_root_directory_is_as_a_jail(
    jail: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        os.chroot(".")
        _, found = look(capsys)
        assert {name for name, one in found.items() if one["accepts"]} == WELL_IN_THE_JAIL

    in_child(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_root_directory_without_rights(
    jail: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even what leads there need be open: it is the working directory."""
    jail.chmod(0o755)
    (jail / "real.example" / "tls-socket").chmod(0o777)
    jail.parent.chmod(0o700)

    def work() -> None:
        os.setuid(65534)
        for root in (".", str(jail)):
            _, found = look(capsys, "--root", root)
            assert {name for name, one in found.items() if one["accepts"]} == WELL_IN_THE_JAIL

    in_child(work)


def test_without_a_root_directory(jail: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said so, absolute links are as good as others; not said, they are warned of."""
    status, found = look(capsys, "--root", "/")
    assert status == 1
    well = {name for name, one in found.items() if not one["problems"] and not one["notes"]}
    assert well == {"real.example", "relative", "own-path", "outside", "climbs"}
    _, found = look(capsys)
    assert "use ../real.example/tls-socket" in str(found["own-path"]["problems"])
    (problem,) = found["outside"]["problems"]  # type: ignore[misc]
    assert "is an absolute link out of the hosts directory" in problem
    assert "use " not in problem
    assert "leads out of the hosts directory" in str(found["climbs"]["notes"])


def test_the_root_directory_of_the_unit(
    jail: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    units = pathlib.Path(f"{jail}-outside")
    monkeypatch.setattr(unit, "PLACES", (str(units),))

    def accepting() -> set[str]:
        _, found = look(capsys)
        return {name for name, one in found.items() if one["accepts"]}

    def write(root: str | pathlib.Path) -> None:
        (units / "sniproxy.service").write_text(f"[Service]\nRootDirectory={root}\n")

    outside_a_jail = accepting()
    assert "outside" in outside_a_jail
    for elsewhere in ("/no/such", "relative", units, jail / "real.example", f"{jail}x", ""):
        write(elsewhere)
        assert accepting() == outside_a_jail
    write(f"{jail}/../{jail.name}/")
    assert accepting() == WELL_IN_THE_JAIL
    write(jail.parent)  # with WorkingDirectory=
    assert accepting() == {"real.example", "relative", "climbs"}


def test_a_wrong_root_directory(hosts: pathlib.Path) -> None:
    (hosts / "file").touch()
    (hosts / "below").mkdir()
    for root, words in (
        ("nowhere", "does not lie in the root directory"),
        ("below", "does not lie in the root directory"),
        ("file", "does not lie in the root directory"),
    ):
        done = run("--root", root)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_headers_in_a_root_directory(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen(hosts / "a.example"), listen(hosts / "b.example"):
        (hosts / "header").touch()
        (hosts / "a.example" / "send-proxy-v2").symlink_to("/header")
        (hosts / "b.example" / "send-proxy-v1").symlink_to(hosts / "header")
        _, found = look(capsys, "--root", ".")
    assert (found["a.example"]["proxy_header"], found["a.example"]["problems"]) == ("v2", [])
    assert found["b.example"]["proxy_header"] == "none"
    assert "use ../header: it counts as absent" in str(found["b.example"]["problems"])


def test_a_backend_that_is_not_started(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link is not to blame for what is missing where it leads."""
    (hosts / "real.example").mkdir()
    (hosts / "linked.example").symlink_to("real.example")
    (hosts / "again.example").symlink_to("linked.example")
    (hosts / "file.example").touch()
    (hosts / "through.example").mkdir()
    (hosts / "through.example" / "tls-socket").symlink_to("../file.example/tls-socket")
    _, found = look(capsys)
    assert found["real.example"]["problems"] == ["there is no tls-socket"]
    for name in ("linked.example", "again.example"):
        assert found[name]["problems"] == [
            "there is no tls-socket in real.example: is its backend running?"
        ]
    assert found["through.example"]["problems"] == ["file.example is not a directory"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
def test_no_socket_whatever_its_mode(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That it may not be written to is not what is wrong with it."""
    hosts.chmod(0o755)
    for name in ("file", "directory", "pipe", "device", "linked", "shut"):
        (hosts / name).mkdir()
    (hosts / "file" / "tls-socket").touch(0o644)
    (hosts / "directory" / "tls-socket").mkdir()
    os.mkfifo(hosts / "pipe" / "tls-socket", 0o600)
    (hosts / "device" / "tls-socket").symlink_to("/dev/null")
    (hosts / "linked" / "tls-socket").symlink_to("../file/tls-socket")
    (hosts / "shut" / "tls-socket").touch()
    (hosts / "shut").chmod(0o700)

    def work() -> None:
        os.setuid(65534)
        _, found = look(capsys, "--root", "/")
        for name, kind in {
            "file": "a regular file",
            "directory": "a directory",
            "pipe": "a named pipe",
            "device": "a device",
            "linked": "a regular file",
        }.items():
            words = f"tls-socket is no socket: it is {kind}, and the backend must make it"
            assert found[name]["problems"] == [words]
        assert found["shut"]["problems"] == ["permission denied to uid 65534: it lacks x on shut"]

    in_child(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
def test_what_more_than_modes_denies(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links of others in a sticky directory: a long name's is followed by itself, by the proxy."""
    protected = pathlib.Path("/proc/sys/fs/protected_symlinks").read_text().strip() == "1"
    hosts.chmod(0o1777)
    names = ["short", ".".join(["long"] * 20)]
    with listen(hosts / "a.example"):
        (hosts / "a.example" / "tls-socket").chmod(0o777)
        for name in names:
            (hosts / name).symlink_to("a.example")
            os.lchown(hosts / name, 65533, 65533)

        def work() -> None:
            os.setuid(65534)
            _, found = look(capsys)
            assert found["short"]["accepts"]
            assert found[names[1]]["accepts"] != protected
            assert ("though modes allow it" in str(found[names[1]]["problems"])) == protected

        in_child(work)


def test_what_is_left_lying_is_noted(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".git", "lost+found", ".hidden.example", "a.example~", "b.example.bak", ".ssh"):
        (hosts / name).mkdir()
    for name in ("README", "Makefile", ".gitignore", "#a#", "notes.txt", "c.dpkg-old", "c.swp"):
        (hosts / name).touch()
    (hosts / "README.md").symlink_to("README")
    (hosts / ".#a").symlink_to("root@host.4711:1")
    noted = set(os.listdir())
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop() == "0 hosts, 0 well, 0 not"
    assert {line.split()[0] for line in lines} == {"note"}
    assert {line.split()[1] for line in lines} == noted
    # What may have been meant is told of.
    for name in ("Upper.example", "_a", "c.example"):
        (hosts / name).mkdir()
    (hosts / "file.example").touch()
    with listen(hosts / "d.example.bak"):
        status, found = look(capsys)
    assert status == 1
    assert {name for name, one in found.items() if one["is_host"]} == set(found) - noted
    assert {name for name, one in found.items() if one["problems"]} == {
        "Upper.example", "_a", "c.example", "file.example",
    }  # fmt: skip
    assert found["d.example.bak"]["accepts"]


def test_the_executable_while_the_unit_starts(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(sys.executable, "sniproxy")
    with listen(hosts / "a.example"):
        assert look(capsys, "--root", ".")[0] == 0
        # It has been removed since the directory was read, and so has a host.
        (hosts / "sniproxy").unlink()
        results = list(Check(None).findings(["a.example", "b.example", "sniproxy"]))
    assert [(one.name, one.is_host, one.problems) for one in results] == [
        ("a.example", True, []), ("b.example", False, []),
    ]  # fmt: skip
    assert results[1].notes == ["has been removed meanwhile"]


def test_trouble_with_one_entry_is_that_entry_s(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens on the way: the others are reported as they are."""
    known = check.kind_of

    def kind_of(name: str) -> object:
        if name in trouble:
            raise trouble[name]
        return known(name)

    trouble: dict[str, BaseException] = {
        "b.example": MemoryError(),
        "c.example": RecursionError("too deep"),
        "d.example": OSError(5, "Input/output error"),
        "e.example": IndexError("a\x1b"),
    }
    monkeypatch.setattr(check, "kind_of", kind_of)
    with listen(hosts / "a.example"), listen(hosts / "f.example"):
        for name in trouble:
            (hosts / name).mkdir()
        descriptors = len(os.listdir("/proc/self/fd"))
        status, found = look(capsys)
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert status == 1
    assert found["a.example"]["problems"] == found["f.example"]["problems"] == []
    assert found["b.example"]["problems"] == ["can't be looked at: MemoryError: "]
    assert found["c.example"]["problems"] == ["can't be looked at: RecursionError: too deep"]
    assert "Input/output error" in str(found["d.example"]["problems"])
    assert found["e.example"]["problems"] == ["can't be looked at: IndexError: a\\x1b"]


def test_each_entry_is_written_at_once(hosts: pathlib.Path) -> None:
    """What ends the run does not take away what was found before."""
    with listen(hosts / "a.example"), listen(hosts / "b.example"):
        program = (
            "import os; from sniproxy.tools import check; from sniproxy.tools.ourselves import *\n"
            "seen = check.Check._finding\n"
            "check.Check._finding = lambda self, name, hosts: (\n"
            "    os._exit(9) if name == 'b.example' else seen(self, name, hosts))\n"
            "check.main([])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
    assert done.returncode == 9
    assert done.stdout.startswith("ok   a.example  accepts")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "shift-jis"])
def test_names_that_the_locale_cannot_write(hosts: pathlib.Path, encoding: str) -> None:
    names = ["bücher.example", "字.example", "\udcff", "a.example"]
    for name in names:
        (hosts / name).mkdir()
    (hosts / "a.example" / "tls-socket").symlink_to("字")
    done = run(PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (1, "")
    assert "4 hosts, 0 well, 4 not" in done.stdout
    for name in names:
        data = name.encode("utf-8", "surrogateescape")
        escaped = "".join(chr(one) if one < 128 else f"\\x{one:02x}" for one in data)
        try:
            name.encode(encoding)
        except UnicodeEncodeError:
            assert f"FAIL {escaped} " in done.stdout
        else:
            assert f"FAIL {name} " in done.stdout
    # Nor does the encoding of file names change what is said of them.
    for locale in ("C", "POSIX"):
        plain = run("--json", LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        assert json.loads(plain.stdout) == json.loads(run("--json").stdout)


def test_the_number_of_a_user_may_be_large(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    with socket.socket(socket.AF_UNIX) as listening:
        (hosts / "a.example").mkdir()
        listening.bind("a.example/tls-socket")

        def work() -> None:
            os.setuid(2**32 - 10)
            listening.listen()

        in_child(work)
        _, found = look(capsys)
    assert found["a.example"]["backend_user"] == str(2**32 - 10)


@pytest.mark.parametrize("way", ["direct", "link", "jail"])
def test_a_host_that_leads_back(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    with (
        socket.socket(socket.AF_UNIX) as listening,
        listen(hosts / "a.example"),
        listen(hosts / "c.example") as other,
    ):
        (hosts / "b.example").mkdir()
        listening.bind("b.example/tls-socket" if way == "direct" else "own")
        listening.listen()
        if way != "direct":
            (hosts / "b.example" / "tls-socket").symlink_to("/own" if way == "jail" else "../own")
        proxy = Proxy(commands(None), hosts, listening, {"SNIPROXY_WORKERS": "2"})
        # What serves other hosts is a backend as any.
        (hosts / "other").mkdir()
        another = Proxy(commands(None), hosts / "other", other, {"SNIPROXY_WORKERS": "1"})
        try:
            wait_for(proxy, "event=start")
            wait_for(another, "event=start")
            _, found = look(capsys, *(["--root", "."] if way == "jail" else []))
        finally:
            for one in (proxy, another):
                one.process.kill()
                one.process.wait()
    assert found["b.example"]["accepts"]
    assert found["b.example"]["problems"] == ["leads back to sniproxy itself, which listens there"]
    assert found["a.example"]["problems"] == found["c.example"]["problems"] == []


def mazes(hosts: pathlib.Path) -> None:
    """Plant entries that make a look-up expensive, each in another way."""
    (hosts / "d").mkdir()
    for number in range(MOST_LINKS - 1):
        # Links of links; each leads through the one before as often as its target has room.
        before = f"l{number - 1}" if number else "d"
        (hosts / f"l{number}").symlink_to(f"{before}/../" * (4000 // len(f"{before}/../")) + "d")
    for name, target in {
        "few-links": f"l1/../{'l0/../' * 300}d",
        "slashes": "/" * 4095,
        "dots": "./" * 2047,
        "climbs": "../" * 1365,
        "long": "/".join(["x" * 255] * 15),
        "tops": "/." * 2047,
        "names": "d/../" * 800 + "d",
        "circle": "circle/a",
    }.items():
        (hosts / name).symlink_to(target)
        (hosts / f"{name}.example").mkdir()
        for file in ("tls-socket", "send-proxy-v1", "send-proxy-v2"):
            (hosts / f"{name}.example" / file).symlink_to(target)
    deep = hosts / "deep.example"
    before = pathlib.Path.cwd()
    deep.mkdir()
    os.chdir(deep)
    for _ in range(100):
        os.mkdir("y" * 255)
        os.chdir("y" * 255)
    os.chdir(before)
    links = "/".join(["y" * 255] * 10)
    for number in range(9):
        (hosts / f"into{number}").symlink_to(
            f"into{number - 1}/{links}" if number else "deep.example"
        )
    full = hosts / "full.example"
    full.mkdir()
    for number in range(2000):
        (full / str(number)).symlink_to(f"{number + 1}/..")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: install strace")
@pytest.mark.parametrize("options", [[], ["--root", "."], ["--root", "/"]])
def test_work_is_bounded(
    hosts: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, options: list[str]
) -> None:
    """In system calls, since only these can take long; and in what is written of one entry."""

    def calls() -> tuple[int, list[str]]:
        trace = tmp_path_factory.mktemp("trace") / "trace"
        tracer = ["strace", "-f", "-o", str(trace), sys.executable, "-c", PROGRAM]
        done = subprocess.run([*tracer, *options], capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return trace.read_text().count("\n"), done.stdout.splitlines()

    (hosts / "_a").mkdir()  # whose name has idna loaded
    before, _ = calls()
    mazes(hosts)
    after, lines = calls()
    entries = len(os.listdir())
    assert len(lines) == entries + 1
    assert after - before < entries * 8 * MOST_STEPS
    assert max(map(len, lines)) < 8 * 1024
    stopped = [line for line in lines if f"more than {MOST_STEPS} names" in line]
    assert len(stopped) > MOST_LINKS


@pytest.mark.parametrize(
    ("mode", "better"),
    [(0o1777, "1773"), (0o1775, "1771"), (0o1773, ""), (0o1771, ""), (0o755, "")],
)
def test_a_hosts_directory_that_any_user_could_hold(
    hosts: pathlib.Path, capsys: pytest.CaptureFixture[str], mode: int, better: str
) -> None:
    """So could they a host's, which matters where hosts are others'."""
    hosts.chmod(mode)
    for name, rights in (("open.example", 0o755), ("closed.example", 0o711)):
        (hosts / name).mkdir()
        (hosts / name).chmod(rights)
    main(["--json", str(hosts)])
    out, err = capsys.readouterr()
    assert (f"chmod {better}" in err) == bool(better)
    assert ("warning" in err) == bool(better)
    notes = {one["name"]: "chmod o-r" in str(one["notes"]) for one in json.loads(out)}
    assert notes == {"closed.example": False, "open.example": bool(mode & 0o022)}
