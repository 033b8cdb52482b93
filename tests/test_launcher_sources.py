"""Where CPython's source comes from, and that nothing unverified is used."""

import hashlib
import shutil
import tarfile
from pathlib import Path

import pytest

from launcher.chain import sources
from launcher.chain.failure import BuildFailure
from launcher.chain.sources import Tarball

needs_xz = pytest.mark.skipif(shutil.which("xz") is None, reason="xz is missing: install xz-utils")


def tarball(at: Path, version: str = "3.11.9") -> Tarball:
    """Make a source archive of as little as is looked at."""
    tree = at / "Python" / "Include"
    tree.mkdir(parents=True)
    (tree / "patchlevel.h").write_text(f'#define PY_VERSION      "{version}"\n')
    file = at / "Python.tar.xz"
    with tarfile.open(file, "w:xz") as tar:
        tar.add(at / "Python", "Python-x")
    return Tarball(str(file), hashlib.sha256(file.read_bytes()).hexdigest())


def test_debian_is_wanted_unless_a_source_is_named() -> None:
    assert sources.wanted({}) is None
    assert sources.wanted({"PYTHON_SOURCE": ""}) is None


def test_a_named_source_comes_with_its_checksum() -> None:
    wish = {"PYTHON_SOURCE": "/x.tar.xz", "PYTHON_SOURCE_SHA256": "AB" * 32}
    assert sources.wanted(wish) == Tarball("/x.tar.xz", "ab" * 32)


@pytest.mark.parametrize("checksum", [{}, {"PYTHON_SOURCE_SHA256": "abc"}])
def test_a_named_source_without_a_whole_checksum_is_refused(checksum: dict[str, str]) -> None:
    with pytest.raises(BuildFailure, match="PYTHON_SOURCE_SHA256 must be"):
        sources.wanted({"PYTHON_SOURCE": "/x.tar.xz", **checksum})


def test_a_checksum_without_a_source_is_a_mistake() -> None:
    with pytest.raises(BuildFailure, match="PYTHON_SOURCE is not"):
        sources.wanted({"PYTHON_SOURCE_SHA256": "ab" * 32})


@needs_xz
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_verified_archive_is_unpacked(tmp_path: Path, scheme: str) -> None:
    given = tarball(tmp_path)
    tree = tmp_path / "tree"
    wanted = Tarball(scheme + given.location, given.sha256)
    origin = sources.unpack_tarball(wanted, tmp_path / "workshop", tree, tmp_path / "log")
    assert (tree / "Include" / "patchlevel.h").exists()
    assert origin == sources.Origin("Python.tar.xz", "3.11.9", given.sha256)


def test_a_checksum_that_does_not_match_stops_before_unpacking(tmp_path: Path) -> None:
    given = tarball(tmp_path)
    tree = tmp_path / "tree"
    wrong = Tarball(given.location, "0" * 64)
    with pytest.raises(BuildFailure, match="does not match") as failure:
        sources.unpack_tarball(wrong, tmp_path / "workshop", tree, tmp_path / "log")
    assert "0" * 64 in str(failure.value)
    assert given.sha256 in str(failure.value)
    assert not tree.exists()


@needs_xz
def test_another_series_is_refused(tmp_path: Path) -> None:
    given = tarball(tmp_path, "3.12.0")
    with pytest.raises(BuildFailure, match=r"must be CPython 3\.11, found 3\.12\.0"):
        sources.unpack_tarball(given, tmp_path / "workshop", tmp_path / "tree", tmp_path / "log")


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("/nowhere.tar.xz", "No such file"),
        ("ftp://127.0.0.1/x.tar.xz", "expected a path"),
        ("file:///nowhere.tar.xz", "nowhere"),
    ],
)
def test_a_source_that_is_not_there_is_named(tmp_path: Path, location: str, complaint: str) -> None:
    wanted = Tarball(location, "0" * 64)
    with pytest.raises(BuildFailure, match=complaint):
        sources.unpack_tarball(wanted, tmp_path / "workshop", tmp_path / "tree", tmp_path / "log")


def test_the_newest_version_is_tried_first() -> None:
    description = "".join(
        f"Package: python3.11\nVersion: 3.11.2-6+deb12u{update}\n\n" for update in (9, 10, 8, 9)
    )
    assert sources.debian_versions(description) == [
        "3.11.2-6+deb12u10",
        "3.11.2-6+deb12u9",
        "3.11.2-6+deb12u8",
    ]


def test_only_debian_s_own_mirrors_become_sources() -> None:
    targets = """http://mirror.example/debian/ bookworm main
http://mirror.example/debian/ bookworm main
http://mirror.example/debian/ bookworm contrib
http://mirror.example/debian-security/ bookworm-security main
http://mirror.example/debian/ trixie main
http://packages.example/tool/ bookworm main
"""
    entries = sources.source_entries(targets, "bookworm")
    assert [entry.split("] ")[1] for entry in entries] == [
        "http://mirror.example/debian/ bookworm main",
        "http://mirror.example/debian-security/ bookworm-security main",
    ]
    assert all(f"[signed-by={sources.KEYRING}]" in entry for entry in entries)
