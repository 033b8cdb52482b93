"""What sniproxy-check says of each kind of entry."""

import json
import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from jsonschema import ValidationError, validate

from sniproxy.tools import check, unit
from sniproxy.tools.check import Check, main
from sniproxy.tools.way import MOST_LINKS, MOST_STEPS
from tests.end_to_end.harness import Proxy, commands, wait_for
from tests.processes import in_child
from tests.transcript import FOLDER, cases


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


SCHEMA = pathlib.Path(__file__).parents[1] / "docs" / "reference" / "check.schema.json"


@pytest.mark.parametrize("case", cases("sniproxy-check"))
def test_transcript(case: str, play: Callable[[str], None]) -> None:
    play(case)


def test_the_documents_of_the_transcripts_fit_the_schema() -> None:
    """And it says no to something else."""
    schema = json.loads(SCHEMA.read_text())
    text = "".join((FOLDER / case).read_text() for case in cases("sniproxy-check"))
    found = [
        one
        for document in re.findall(r"^\[(?:\{.*?\})?\]$", text, re.MULTILINE | re.DOTALL)
        for one in json.loads(document.replace(": PID", ": 1"))
    ]
    validate(found, schema)
    assert {one["kind"] for one in found} == {"host", "wildcard", "default", "nosni", None}
    assert set(schema["items"]["properties"]) == set(found[0])
    for change in ({"kind": "none"}, {"more": 1}, {"proxy_header": "v3"}):
        with pytest.raises(ValidationError):
            validate([found[0] | change], schema)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_become_another_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/nowhere"]) == 2
    check._load_everything()  # that user may not be able to

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
