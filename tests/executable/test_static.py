"""The file itself: one static program, small, and silent about where it was made."""

import os
import pathlib
import re
import subprocess

import pytest

from tests.end_to_end.test_tls_peers import need
from tests.executable.conftest import ROOT

MAX_BYTES = 12_000_000

INSIDE = ("build", "launcher", "sniproxy")
"""Folders of the repository whose files get in. (A checkout in /src has a short name itself, which
is a part of others' paths.)"""

CARGO = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")


def readelf(executable: pathlib.Path, option: str) -> str:
    command = [need("readelf", "binutils"), "-W", option, str(executable)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_has_no_interpreter_and_needs_no_library(executable: pathlib.Path) -> None:
    segments = readelf(executable, "--program-headers")
    assert "LOAD" in segments
    assert "INTERP" not in segments
    entries = readelf(executable, "--dynamic")
    assert "FLAGS" in entries
    assert "NEEDED" not in entries


def test_it_may_lie_anywhere_in_memory(executable: pathlib.Path) -> None:
    assert "DYN (Position-Independent Executable file)" in readelf(executable, "--file-header")
    assert "PIE" in readelf(executable, "--dynamic")
    # At its start it moves what depends on where it lies, and chooses functions for the processor:
    # nobody is there who could look a name up.
    kinds = re.findall(r"\bR_(?:X86_64|AARCH64)_(\w+)", readelf(executable, "--relocs"))
    assert "IRELATIVE" in kinds
    assert set(kinds) <= {"RELATIVE", "IRELATIVE", "NONE"}


def test_no_segment_is_writable_and_executable(executable: pathlib.Path) -> None:
    segments = readelf(executable, "--program-headers")
    flags = re.findall(r"^ +([A-Z_]+) +(?:0x[0-9a-f]+ +){5}([RWE ]{3})", segments, re.MULTILINE)
    assert ("LOAD", "R E") in flags
    assert ("GNU_STACK", "RW ") in flags
    assert not [flag for flag in flags if "W" in flag[1] and "E" in flag[1]]


def test_it_is_stripped_and_small(executable: pathlib.Path) -> None:
    assert ".symtab" not in readelf(executable, "--section-headers")
    assert executable.stat().st_size <= MAX_BYTES


@pytest.mark.parametrize(
    "folder", [*(ROOT / name for name in INSIDE), CARGO / "registry"], ids=lambda path: path.name
)
def test_no_path_of_the_machine_is_in_it(executable: pathlib.Path, folder: pathlib.Path) -> None:
    assert f"{folder}/".encode() not in executable.read_bytes()
