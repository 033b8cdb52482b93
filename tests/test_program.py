"""Which file is run anew, and that nobody else could have put it there."""

import os
import pathlib
import sys

import pytest

from sniproxy.process.program import own_command, why_not_to_run

OTHER = 65533


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    return monkeypatch


@pytest.fixture
def program(tmp_path: pathlib.Path, frozen: pytest.MonkeyPatch) -> pathlib.Path:
    (tmp_path / "folder").mkdir(mode=0o755)
    path = tmp_path / "folder" / "program"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_from_source_it_is_the_interpreter_with_its_arguments() -> None:
    command = own_command()
    assert command is not None
    assert command == [sys.executable, *sys.orig_argv[1:]]


def test_an_interpreter_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert own_command() is None


@pytest.mark.parametrize("name", ["./program", "folder/program", "../program"])
def test_a_relative_path_is_none(frozen: pytest.MonkeyPatch, name: str) -> None:
    frozen.setattr(sys, "argv", [name])
    assert own_command() is None


def test_an_absolute_path(program: pathlib.Path, frozen: pytest.MonkeyPatch) -> None:
    frozen.setattr(sys, "argv", [str(program), "word"])
    assert own_command() == [str(program), "word"]


def test_a_name_is_looked_for_as_it_was(
    program: pathlib.Path, tmp_path: pathlib.Path, frozen: pytest.MonkeyPatch
) -> None:
    frozen.setattr(sys, "argv", ["program"])
    (tmp_path / "one" / "program").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "program").write_text("not executable")
    frozen.setenv("PATH", f"{tmp_path}/none:{tmp_path}/one:{tmp_path}/two:{program.parent}:/bin")
    assert own_command() == [str(program)]
    frozen.setenv("PATH", f"{tmp_path}/none")
    assert own_command() is None
    # An empty word is the working directory, where others may write.
    frozen.chdir(program.parent)
    frozen.setenv("PATH", f":{program.parent}")
    assert own_command() is None


def test_what_is_ours_alone_may_be_run(program: pathlib.Path) -> None:
    assert why_not_to_run([str(program)]) is None


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
@pytest.mark.parametrize("what", ["program", "folder", "above"])
def test_what_others_may_write_to_may_not(program: pathlib.Path, what: str, mode: int) -> None:
    path = {"program": program, "folder": program.parent, "above": program.parent.parent}[what]
    path.chmod(mode)
    told = why_not_to_run([str(program)])
    assert told is not None
    assert told.startswith(f"{path} may be written to")
    path.chmod(0o755)


def test_a_sticky_folder_lets_nobody_replace_what_is_ours(program: pathlib.Path) -> None:
    program.parent.chmod(0o1777)
    assert why_not_to_run([str(program)]) is None
    # On a file the bit means nothing.
    program.chmod(0o1757)
    assert why_not_to_run([str(program)]) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("what", ["program", "folder", "link"])
def test_what_is_anothers_may_not(program: pathlib.Path, what: str) -> None:
    run = link = program.parent / "link"
    link.symlink_to(program)
    changed = {"program": program, "folder": program.parent, "link": link}[what]
    os.chown(changed, OTHER, OTHER, follow_symlinks=False)
    told = why_not_to_run([str(run)])
    assert told == f"{changed} belongs to another user"


def test_links_are_followed_with_all_that_they_lead_through(
    program: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    (open_to_all / "deep").mkdir()
    (open_to_all / "deep" / "second").symlink_to(program)
    (tmp_path / "first").symlink_to("folder/../open/./deep/second")
    run = [str(tmp_path / "first")]
    assert why_not_to_run(run) is None
    open_to_all.chmod(0o777)
    assert why_not_to_run(run) == f"{open_to_all} may be written to by others than its owner"
    open_to_all.chmod(0o755)
    program.chmod(0o757)
    assert why_not_to_run(run) == f"{program} may be written to by others than its owner"


def test_links_in_a_circle(tmp_path: pathlib.Path, frozen: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        why_not_to_run([str(tmp_path / "one")])


def test_a_file_that_is_missing(tmp_path: pathlib.Path, frozen: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        why_not_to_run([str(tmp_path / "missing")])


def test_from_source_the_package_counts_too(
    program: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr("sniproxy.process.program.__file__", str(program))
    assert why_not_to_run(["/bin/sh"]) is None
    program.parent.chmod(0o777)
    assert why_not_to_run(["/bin/sh"]) is not None
