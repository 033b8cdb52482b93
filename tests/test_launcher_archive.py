"""What is downloaded: the archive; and the licences that a package has too."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from launcher.chain import archive
from launcher.chain.components import Component
from launcher.chain.failure import BuildFailure

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = '#!/bin/sh\necho "${0##*/}"\n'

needs_xz = pytest.mark.skipif(shutil.which("xz") is None, reason="xz is missing: install xz-utils")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name in (
        *archive.PAGES,
        "chroot/sniproxy.service",
        "chroot/s6/run",
        "chroot/debian/control",
        "docs/man/sniproxy.8",
        "docs/design.md",
        "docs/__pycache__/design.pyc",
        "tests/secret",
    ):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (root / "chroot/s6/run").chmod(0o755)
    (root / "dist").mkdir()
    (root / "dist/sniproxy-hashed").write_text(PROGRAM)
    (root / "dist/sniproxy-hashed").chmod(0o755)
    return root


def layout(repository: Path) -> archive.Contents:
    licence = repository / "LICENSE"
    parts = [
        Component("GNU C library", "2.36", "LGPL-2.1-or-later", "pkg:x/c", "", (licence,)),
        Component("syn", "1.0", "MIT", "pkg:cargo/syn@1.0", "", (licence,), inside=False),
    ]
    return archive.contents(repository, repository / "dist/sniproxy-hashed", "{}", parts)


def test_everything_has_its_place(repository: Path) -> None:
    assert set(layout(repository)) == {
        "bin/sniproxy",
        "bin/sniproxy-check",
        "bin/sniproxy-hostname",
        "bin/sniproxy-listen",
        "bin/sniproxy-status",
        "chroot/s6/run",
        "chroot/sniproxy.service",
        "docs/design.md",
        "licenses/GNU-C-library-2.36/LICENSE",
        "sbom.cdx.json",
        "share/man/man8/sniproxy.8",
        *archive.PAGES,
    }


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("README.md", "[a](docs/design.md), [b](chroot)", "[a](docs/design.md), [b](chroot)"),
        ("README.md", "[a](docs/design.md#why)", "[a](docs/design.md#why)"),
        ("README.md", "[a](https://a.example/b) [c](#d)", "[a](https://a.example/b) [c](#d)"),
        ("README.md", "[a](tests/secret), [b](b.md#c)", "a, b"),
        ("README.md", "[a](chroot/debian/control)", "a"),
        ("README.md", "![a](a.svg)", "a"),
        ("README.md", "[`a [b] [c]`](d.md)", "`a [b] [c]`"),
        ("README.md", "[a](docs/man/sniproxy.8)", "[a](share/man/man8/sniproxy.8)"),
        ("README.md", "`man docs/man/sniproxy.8`", "`man share/man/man8/sniproxy.8`"),
        ("docs/design.md", "[a](../README.md) [b](README.md)", "[a](../README.md) b"),
    ],
)
def test_pages_are_right_where_they_are(
    repository: Path, name: str, text: str, expected: str
) -> None:
    (repository / name).write_text(text)
    assert layout(repository)[name] == expected.encode()


@needs_xz
def test_no_page_of_ours_has_a_dead_link(tmp_path: Path) -> None:
    (tmp_path / "sniproxy").write_text(PROGRAM)
    found = archive.contents(ROOT, tmp_path / "sniproxy", "{}", [])
    archive.write(tmp_path / "x.tar", "x", found, 0)
    subprocess.run(["tar", "-x", "-f", tmp_path / "x.tar", "-C", tmp_path], check=True)
    links = [
        (page, target)
        for page in (tmp_path / "x").rglob("*.md")
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if not target.startswith("https:")
    ]
    assert len(links) > 10
    assert [link for link in links if not (link[0].parent / link[1]).exists()] == []


def licences(script: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_licences_of_nothing_built_are_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "launcher", tmp_path / "launcher")
    done = licences(tmp_path / "launcher" / "licences.py", tmp_path / "licenses")
    assert (done.returncode, done.stdout) == (1, "")
    assert "source.json: run `make executable` first" in done.stderr
    assert not (tmp_path / "licenses").exists()


def test_licences_need_a_folder() -> None:
    done = licences(ROOT / "launcher" / "licences.py")
    assert (done.returncode, done.stderr) == (2, "usage: licences.py FOLDER [MACHINE]\n")


@needs_xz
def test_it_unpacks_to_commands_that_run(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "sniproxy-1.0.tar.xz"
    archive.write(file, "sniproxy-1.0", layout(repository), 1_600_000_000)
    subprocess.run(["tar", "-x", "-f", str(file), "-C", str(tmp_path)], check=True)
    bin_folder = tmp_path / "sniproxy-1.0" / "bin"
    for name in ("sniproxy", *archive.NAMES):
        done = subprocess.run([bin_folder / name], capture_output=True, text=True, check=True)
        assert done.stdout == f"{name}\n"
    assert os.access(tmp_path / "sniproxy-1.0/chroot/s6/run", os.X_OK)
    assert not os.access(tmp_path / "sniproxy-1.0/README.md", os.X_OK)


def test_equal_contents_give_equal_bytes(repository: Path, tmp_path: Path) -> None:
    made = []
    for number in range(2):
        for file in repository.rglob("*"):
            os.utime(file, (number, number))
        found = dict(reversed(layout(repository).items()) if number else layout(repository))
        archive.write(tmp_path / f"{number}.tar.xz", "x", found, 1_600_000_000)
        made.append((tmp_path / f"{number}.tar.xz").read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "0.tar.xz") as tar:
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in tar} == {
            (1_600_000_000, 0, 0, "")
        }


def test_nothing_leads_out_of_it(tmp_path: Path) -> None:
    with pytest.raises(BuildFailure, match="leads out"):
        archive.write(tmp_path / "x.tar.xz", "x", {"../x": b""}, 0)
    assert not (tmp_path / "x.tar.xz").exists()
