"""What is downloaded: the archive and its checksums."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from launcher.chain import archive
from launcher.chain.components import Component
from launcher.chain.failure import BuildFailure

PROGRAM = '#!/bin/sh\necho "${0##*/}"\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name in (
        *archive.PAGES,
        "chroot/sniproxy.service",
        "chroot/s6/run",
        "docs/man/sniproxy.8",
        "docs/design.md",
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
        "chroot/s6/run",
        "chroot/sniproxy.service",
        "docs/design.md",
        "licenses/GNU-C-library-2.36/LICENSE",
        "sbom.cdx.json",
        "share/man/man8/sniproxy.8",
        *archive.PAGES,
    }


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


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    files = [tmp_path / "b.tar.xz", tmp_path / "a.json"]
    for file in files:
        file.write_text(file.name)
    (tmp_path / "SHA256SUMS").write_text(archive.checksums(files))
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path, check=True)
    files[0].write_text("changed")
    assert subprocess.run(check, cwd=tmp_path, check=False, capture_output=True).returncode
