"""Which modules go into the executable, and that the commands need no other."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import idna
import pytest

from launcher.chain import interpreter, modules, training
from launcher.chain.failure import BuildFailure
from tests.status_stub import document, host, ok, stub
from tests.terminal import terminal

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(sysconfig.get_path("stdlib"))
STAND_IN = ROOT / "launcher" / "stand_in"

BUILT_IN = {*interpreter.EXTENSIONS, *sys.builtin_module_names}

only_3_11 = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the executable's library is that of Python 3.11"
)


def package(at: Path, **files: str) -> Path:
    (at / "thing").mkdir()
    for name, text in files.items():
        (at / "thing" / f"{name}.py").write_text(text)
    return at


def test_imports_are_followed_into_functions(tmp_path: Path) -> None:
    folder = package(
        tmp_path,
        __init__="",
        one="def late():\n    from thing import two\n",
        two="import posix\n",
        other="",
    )
    selection = modules.select([folder], ["thing.one"], {"posix"}, ())
    assert list(selection.files) == ["thing", "thing.one", "thing.two"]
    assert selection.builtins == {"posix"}


@pytest.mark.parametrize("text", ["import nowhere", "import posix", "def late():\n import nowhere"])
def test_an_import_that_leads_nowhere_stops_the_build(tmp_path: Path, text: str) -> None:
    name = "posix" if "posix" in text else "nowhere"
    with pytest.raises(BuildFailure, match=f"not in the executable: {name}"):
        modules.select([package(tmp_path, __init__=text)], ["thing"], (), ())


def test_an_import_that_is_never_reached_may_lead_nowhere(tmp_path: Path) -> None:
    folder = package(tmp_path, __init__="import nowhere.further, posix\nfrom nowhere import x\n")
    selection = modules.select([folder], ["thing"], {"posix"}, {"nowhere"})
    assert list(selection.files) == ["thing"]


def test_a_name_taken_from_a_module_is_no_missing_module(tmp_path: Path) -> None:
    folder = package(tmp_path, __init__="VALUE = 1\n", one="from thing import VALUE\n")
    assert list(modules.select([folder], ["thing.one"], (), ()).files) == ["thing", "thing.one"]


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildFailure, match=r"needs thing\.more, which"):
        modules.select([package(tmp_path, __init__="")], ["thing.more"], (), ())


def test_all_modules_of_the_package_are_named(tmp_path: Path) -> None:
    package(tmp_path, __init__="", one="")
    (tmp_path / "thing" / "inner").mkdir()
    (tmp_path / "thing" / "inner" / "__init__.py").touch()
    (tmp_path / "thing" / "inner" / "two.py").touch()
    assert modules.package_modules(tmp_path / "thing") == [
        "thing",
        "thing.inner",
        "thing.inner.two",
        "thing.one",
    ]


@pytest.fixture(scope="module")
def selection() -> modules.Selection:
    folders = [ROOT, STAND_IN, LIBRARY, Path(idna.__file__).parent.parent]
    ours = modules.package_modules(ROOT / "sniproxy")
    roots = [*modules.ROOTS, *ours, *modules.INTERPRETER_NEEDS, *modules.CODECS]
    return modules.select(folders, roots, BUILT_IN, modules.NEVER_TAKEN)


GUARD = """
import sys

class Guard:
    '''Let nothing be imported that the executable has not.'''

    def find_spec(self, name, path=None, target=None):
        if name not in allowed:
            raise ModuleNotFoundError(f"{name} is not in the executable", name=name)

for name in list(sys.modules):
    # What the interpreter has imported before must prove itself again.
    if name.partition(".")[0] not in {*sys.builtin_module_names, "codecs", "encodings", "io"}:
        del sys.modules[name]
sys.meta_path.insert(0, Guard())
"""

CALL = """
from sniproxy import commands
sys.exit(commands.main())
"""


def guarded(selection: modules.Selection, code: str, *arguments: str) -> list[str]:
    """Give a command that runs ``code`` where only the selected modules can be imported."""
    allowed = {*selection.files, *BUILT_IN, "importlib._bootstrap", "importlib._bootstrap_external"}
    path = [str(STAND_IN), str(ROOT), str(Path(idna.__file__).parent.parent)]
    start = f"import sys\nallowed = {allowed!r}\nsys.path[:0] = {path!r}\n"
    start += f"sys.argv[:] = {list(arguments)!r}\n"
    return [sys.executable, "-I", "-S", "-c", start + GUARD + code]


def run(command: list[str], folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@only_3_11
def test_every_module_of_ours_imports_with_no_other(selection: modules.Selection) -> None:
    ours = [name for name in modules.package_modules(ROOT / "sniproxy") if "__main__" not in name]
    done = run(guarded(selection, "".join(f"import {name}\n" for name in ours)))
    assert done.stderr == ""
    assert done.returncode == 0


@only_3_11
def test_the_guard_guards(selection: modules.Selection) -> None:
    done = run(guarded(selection, "import unittest\n"))
    assert "unittest is not in the executable" in done.stderr


@only_3_11
@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (("sniproxy", "--version"), "sniproxy "),
        (("sniproxy", "--help"), "usage: "),
        (("sniproxy-hostname", "🕸💍.ws", "faß.de", "العربية.example"), "xn--sr8hvo.ws\n"),
        (("sniproxy-hostname", "--help"), "usage: "),
        (("sniproxy-check", "--help"), "usage: "),
        (("sniproxy-listen", "--help"), "usage: "),
        (("sniproxy-status", "--help"), "usage: "),
    ],
)
def test_each_command_runs_with_no_other(
    selection: modules.Selection, arguments: tuple[str, ...], output: str
) -> None:
    done = run(guarded(selection, CALL, *arguments))
    assert done.stderr == ""
    assert done.stdout.startswith(output)


@only_3_11
def test_the_check_runs_with_no_other(selection: modules.Selection, tmp_path: Path) -> None:
    (tmp_path / "a.example").mkdir()
    (tmp_path / "Not Canonical").mkdir()
    for form in ([], ["--json"]):
        done = run(guarded(selection, CALL, "sniproxy-check", *form), tmp_path)
        assert "not in the executable" not in done.stderr
        assert "a.example" in done.stdout


@only_3_11
def test_the_status_is_shown_with_no_other(selection: modules.Selection, tmp_path: Path) -> None:
    with stub(tmp_path / "status", lambda _: ok(document(host("a.example")))):
        for form in ([], ["--json"]):
            words = ("sniproxy-status", "--socket", str(tmp_path / "status"), *form)
            done = run(guarded(selection, CALL, *words))
            assert (done.stderr, "a.example" in done.stdout) == ("", True)
        with terminal(*guarded(selection, CALL, *words[:3], "--watch")) as shown:
            shown.shows("a.example")
            shown.type("q")
            assert shown.ends() == 0


@only_3_11
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_proxy_works_with_no_other(selection: modules.Selection, workers: str) -> None:
    """A whole life: the start, connections and refusals, the orderly stop."""
    environment = {"SNIPROXY_LOG": "connections", "SNIPROXY_WORKERS": workers}
    training.serve_once(guarded(selection, CALL, "sniproxy"), environment)


def test_what_is_left_out_has_a_reason() -> None:
    assert all(modules.NEVER_TAKEN.values())
    assert not set(modules.NEVER_TAKEN) & set(interpreter.EXTENSIONS)
    assert not set(modules.NEVER_TAKEN) & set(modules.INTERPRETER_NEEDS)
