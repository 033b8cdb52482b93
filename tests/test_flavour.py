"""Both flavours from source, built as a user builds them, and the hashed one at work."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from sniproxy import flavour
from sniproxy.resolver import naming

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = ["sniproxy", "docs", "setup.py", "pyproject.toml", "README.md", "LICENSE"]


def test_the_source_is_plain() -> None:
    assert flavour.HASHED is False


def run(
    command: list[str], check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SNIPROXY_HASHED"}
    return subprocess.run(
        command,
        check=check,
        capture_output=True,
        text=True,
        timeout=110,
        env=environment | variables,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Copy what a build needs, so that nothing of it stays in the source tree."""
    folder = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def install(tree: pathlib.Path, target: pathlib.Path, wish: str | None) -> pathlib.Path:
    variables = {} if wish is None else {"SNIPROXY_HASHED": wish}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    run([*command, "--target", str(target), str(tree)], **variables)
    return target


@pytest.fixture(scope="module")
def hashed(tree: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return install(tree, tmp_path_factory.mktemp("installed") / "hashed", "1")


def tool(target: pathlib.Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([str(target / "bin" / name), *arguments], check=False, PYTHONPATH=str(target))


def test_every_command_says_so(hashed: pathlib.Path) -> None:
    for name in (
        "sniproxy",
        "sniproxy-hostname",
        "sniproxy-check",
        "sniproxy-listen",
        "sniproxy-status",
    ):
        assert re.fullmatch(rf"{name} \S+ \(hashed\)\n", tool(hashed, name, "--version").stdout)


def test_the_manual_pages_are_installed(hashed: pathlib.Path) -> None:
    pages = {path.name for path in (hashed / "share" / "man").glob("man?/*")}
    assert pages == {path.name for path in (ROOT / "docs" / "man").glob("*.[18]")}


def test_the_tools_know_hashes(hashed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = tool(hashed, "sniproxy-hostname", "Bücher.Example.", "a,b")
    hash_ = naming.hashed("xn--bcher-kva.example")
    assert (done.returncode, done.stdout) == (1, hash_ + "\n")
    for name in (hash_, "a.example", hash_[:-1], hash_[:-1] + "!"):
        (tmp_path / name).mkdir()
    done = tool(hashed, "sniproxy-check", str(tmp_path))
    assert done.returncode == 1
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert lines[hash_].endswith(f"{hash_}  there is no tls-socket")
    for name in ("a.example", hash_[:-1], hash_[:-1] + "!"):
        assert "is not the hash of a host name" in lines[name]


def test_a_hash_may_begin_with_a_hyphen(hashed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The line of the manual page makes its directory all the same."""
    page = (ROOT / "docs" / "man" / "sniproxy-hostname.1").read_text()
    line = re.search(r"^\$ (mkdir .*)'.*'(.*)$", page, re.MULTILINE)
    assert line
    names = (f"{number}.example" for number in range(10_000))
    name = next(name for name in names if naming.hashed(name).startswith("-"))
    script = f'cd "$0" && PATH="$1:$PATH" && {line[1]}{name}{line[2]}'
    words = ["sh", "-c", script, str(tmp_path), str(hashed / "bin")]
    done = run(words, check=False, PYTHONPATH=str(hashed))
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(tmp_path) == [naming.hashed(name)]


def test_the_end_to_end_tests_hold(hashed: pathlib.Path) -> None:
    """Those of the way from a name to its backend."""
    command = shlex.join(["env", f"PYTHONPATH={hashed}", str(hashed / "bin" / "sniproxy")])
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not two_workers",
    ]
    words += [f"--sniproxy={command}", "tests/end_to_end/test_lookup.py"]
    words += ["tests/end_to_end/test_system.py", "tests/end_to_end/test_entries.py"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=110, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 15


def test_a_plain_build_in_the_same_tree_is_plain_again(
    tree: pathlib.Path, hashed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The other flavour's build is still lying there."""
    assert (tree / "build").is_dir()
    plain = install(tree, tmp_path / "plain", None)
    assert "(plain)" in tool(plain, "sniproxy", "--version").stdout


def test_a_wish_that_is_none(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "t")]
    done = run([*command, str(tree)], check=False, SNIPROXY_HASHED="yes")
    assert done.returncode
    assert "SNIPROXY_HASHED is 'yes': expected 1 (hashed) or 0 (plain)" in done.stdout + done.stderr
