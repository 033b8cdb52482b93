"""The build's first stage, from a source tarball on this machine to the unpacked source, and when
the last one is done again."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parent.parent / "launcher"

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: install gcc")

STAGE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import build
from chain.failure import BuildFailure
try:
    build.Build(build.Places(build.ROOT, Path(sys.argv[2]))).source()
except BuildFailure as failure:
    sys.exit(str(failure))
"""


def tarball(at: Path, version: str) -> tuple[Path, str]:
    """Make a source archive of as little as this stage looks at; give it and its digest."""
    header = at / "content" / "Include" / "patchlevel.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text(f'#define PY_VERSION      "{version}"\n')
    file = at / f"Python-{version}.tar.xz"
    with tarfile.open(file, "w:xz") as tar:
        tar.add(at / "content", f"Python-{version}")
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def run(folder: Path, source: Path, sha256: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", STAGE, str(LAUNCHER), str(folder)],
        env={**os.environ, "PYTHON_SOURCE": str(source), "PYTHON_SOURCE_SHA256": sha256},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_tarball_is_unpacked_once_and_another_one_takes_its_place(tmp_path: Path) -> None:
    build = tmp_path / "build"
    source, sha256 = tarball(tmp_path, "3.11.9")
    first = run(build, source, sha256)
    assert first.returncode == 0, first.stderr
    assert "source: done" in first.stdout
    assert "3.11.9" in (build / "source" / "Include" / "patchlevel.h").read_text()
    assert json.loads((build / "source.json").read_text()) == {
        "name": "Python-3.11.9.tar.xz",
        "version": "3.11.9",
        "sha256": sha256,
    }
    assert "source: unchanged" in run(build, source, sha256).stdout
    newer, newer_sha256 = tarball(tmp_path, "3.11.10")
    assert "source: done" in run(build, newer, newer_sha256).stdout
    assert json.loads((build / "source.json").read_text())["version"] == "3.11.10"


@pytest.mark.parametrize(
    ("version", "digest", "complaint"),
    [
        ("3.11.9", "0" * 64, "the checksum does not match"),
        ("3.12.0", "", "PYTHON_SOURCE must be CPython 3.11, found 3.12.0"),
    ],
)
def test_a_wrong_tarball_stops_the_build(
    tmp_path: Path, version: str, digest: str, complaint: str
) -> None:
    source, sha256 = tarball(tmp_path, version)
    done = run(tmp_path / "build", source, digest or sha256)
    assert done.returncode == 1
    assert complaint in done.stderr
    # Nothing that was refused counts as had.
    assert not (tmp_path / "build" / "source.json").exists()
    assert "source: done" not in run(tmp_path / "build", source, digest or sha256).stdout


LIBRARIES = """
import sys
sys.path.insert(0, sys.argv[1])
from chain import executable
from chain.target import here
from chain.failure import BuildFailure
executable.LIBRARIES["libnowhere.a"] = "libnowhere-dev"
try:
    executable.link_inputs(here())
except BuildFailure as failure:
    print(failure)
"""

LINK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import build
def link(target, crate, resources, interpreter, folder, output, *rest):
    output.write_text("made")
build.executable.link = link
here = Path(sys.argv[2])
build.interpreter.Interpreter.library_file = here / "libpython3.a"
build.Build(build.Places(build.ROOT, here / "build")).link(here / "resources", here / "output")
"""
"""Decides whether to link, and links nothing: that takes a whole build."""


def test_it_is_linked_again_when_what_is_linked_changes(tmp_path: Path) -> None:
    """An update of the C library or of the compiler changes no file of ours."""
    for name in ("libc.a", "libgcc.a", "libgcc_eh.a", "libpython3.a"):
        (tmp_path / name).write_text("old")
    (tmp_path / "resources").mkdir()
    tools = tmp_path / "tools"
    tools.mkdir()
    # The real one, but for where the libraries are.
    gcc = (
        f'case $1 in -print-file-name=*) echo "{tmp_path}/${{1#*=}}" ;;\n'
        f'*) exec {shutil.which("gcc")} "$@" ;; esac\n'
    )

    def put(name: str, script: str) -> None:
        (tools / name).write_text(f"#!/bin/sh\n{script}")
        (tools / name).chmod(0o755)

    def stage() -> str:
        done = subprocess.run(
            [sys.executable, "-c", LINK, str(LAUNCHER), str(tmp_path)],
            env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    put("gcc", gcc)
    put("rustc", "echo rustc 1.85.0\n")
    put("ld", "echo GNU ld 2.40\n")
    assert stage().startswith("executable: done")
    assert stage() == "executable: unchanged"
    for name in ("libc.a", "libgcc.a", "libgcc_eh.a", "libpython3.a"):
        (tmp_path / name).write_text("new")
        assert stage().startswith("executable: done"), name
    put("ld", "echo GNU ld 2.44\n")
    assert stage().startswith("executable: done")
    put("gcc", f"case $1 in --version) echo gcc of tomorrow ;; *) {gcc} ;; esac\n")
    assert stage().startswith("executable: done")
    assert stage() == "executable: unchanged"


def test_a_library_that_gcc_does_not_find_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES, str(LAUNCHER)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "gcc finds no libnowhere.a to link: install libnowhere-dev (Debian)\n"
