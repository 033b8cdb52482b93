"""What goes around PyOxidizer and cargo."""

import os
import re
from pathlib import Path

import pytest

from launcher.chain import executable
from launcher.chain.failure import BuildFailure


def test_modules_are_laid_out_as_packages(tmp_path: Path) -> None:
    (tmp_path / "thing").mkdir()
    files = {"thing": tmp_path / "thing" / "__init__.py", "thing.one": tmp_path / "elsewhere.py"}
    for name, file in files.items():
        file.write_text(name)
    left = tmp_path / "out" / "left.py"
    left.parent.mkdir()
    left.touch()
    executable.lay_out(files, tmp_path / "out")
    assert (tmp_path / "out" / "thing" / "__init__.py").read_text() == "thing"
    assert (tmp_path / "out" / "thing" / "one.py").read_text() == "thing.one"
    assert not left.exists()


def test_a_file_that_is_the_same_keeps_its_time(tmp_path: Path) -> None:
    fresh, kept = tmp_path / "fresh", tmp_path / "kept"
    kept.write_text("same")
    os.utime(kept, (1, 1))
    fresh.write_text("same")
    executable.replace_if_other(fresh, kept)
    assert kept.stat().st_mtime == 1
    fresh.write_text("other")
    executable.replace_if_other(fresh, kept)
    assert kept.read_text() == "other"


def test_the_caller_s_flags_do_not_get_in() -> None:
    environment = executable.clean({"PYTHONHASHSEED": "0"})
    assert environment["PYTHONHASHSEED"] == "0"
    assert environment["RUSTFLAGS"] == environment["PYTHONPATH"] == ""


def test_a_program_that_does_not_start_fails_the_build(tmp_path: Path) -> None:
    program = tmp_path / "sniproxy"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 70\n")
    program.chmod(0o755)
    with pytest.raises(BuildFailure, match="broken"):
        executable.prove([program], {})
    program.write_text("#!/bin/sh\necho something else\n")
    with pytest.raises(BuildFailure, match="something else"):
        executable.prove([program], {})
    program.write_text("#!/bin/sh\necho sniproxy 1.0 '(plain)'\n")
    assert executable.prove([program], {}) == "sniproxy 1.0 (plain)"


def test_every_requirement_is_pinned_by_hash() -> None:
    text = (Path(executable.__file__).parent.parent / "requirements.txt").read_text()
    entries = re.split(r"^(?=\w)", re.sub(r"(?m)^#.*\n", "", text), flags=re.MULTILINE)[1:]
    assert [entry.split()[0] for entry in entries] == ["idna==3.20", "pyoxidizer==0.24.0"]
    # One wheel of idna for all machines, one of PyOxidizer for each of two.
    assert [len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)) for entry in entries] == [1, 2]
