"""What is missing is named before anything starts, with the package that has it."""

import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from launcher.chain import requirements
from launcher.chain.failure import BuildFailure
from launcher.chain.target import MACHINES, Target, here

BUILD = Path(__file__).resolve().parent.parent / "launcher" / "build.py"


THERE = Target("aarch64" if platform.machine() == "x86_64" else "x86_64")


def missing(
    environment: dict[str, str],
    *absent: str,
    version: str = "rustc 1.85.0 (4d91de4e4 2025-02-17)",
    target: Target | None = None,
    compiled_for: str = "",
) -> list[str]:
    target = target or here()
    return requirements.missing(
        environment,
        target,
        find_tool=lambda tool: None if tool in absent else f"/usr/bin/{tool}",
        has_file=lambda file: file not in absent,
        has_module=lambda name: name not in absent,
        says_version=lambda _: version,
        compiles_for=lambda target: compiled_for or f"{target.machine}-linux-gnu",
    )


def test_nothing_is_missing_where_all_is_there() -> None:
    assert missing({}) == []


@pytest.mark.parametrize(
    ("absent", "line"),
    [
        ("make", "make: make"),
        ("dpkg-source", "dpkg-source: dpkg-dev"),
        ("/usr/include/stdio.h", "/usr/include/stdio.h: libc6-dev"),
        ("venv", "python3 -m venv: python3-venv"),
    ],
)
def test_what_is_missing_is_named_with_its_package(absent: str, line: str) -> None:
    assert missing({}, absent) == [line]


def test_a_rust_that_is_too_old_is_named() -> None:
    (line,) = missing({}, version="rustc 1.63.0")
    assert line.startswith("rustc 1.85 or newer, here is 1.63: rustc and cargo (Debian 13)")
    assert missing({}, version="rustc 2.0.0") == []


def test_a_userland_of_32_bits_is_named() -> None:
    """The kernel says that the machine has 64."""
    (line,) = missing({}, compiled_for="i686-linux-gnu")
    assert line.startswith(f"a gcc for {platform.machine()}, here is one for i686-linux-gnu: ")


def test_a_machine_that_there_is_no_pyoxidizer_for_is_named() -> None:
    (line,) = missing({}, target=Target("riscv64"))
    assert line == "x86_64 or aarch64, and not riscv64: another machine"


def test_what_another_machine_needs_is_named() -> None:
    gcc, qemu = f"{THERE.machine}-linux-gnu-gcc", f"qemu-{THERE.machine}-static"
    library = f"/usr/lib/{THERE.machine}-linux-gnu/libc.a"
    package = f"gcc-{THERE.machine}-linux-gnu".replace("_", "-")
    assert missing({}, gcc, qemu, library, target=THERE) == [
        f"{gcc}: {package}",
        f"{qemu}: qemu-user-static",
        f"{library}: libc6-dev:{MACHINES[THERE.machine]}",
    ]
    assert missing({}, target=THERE) == []


def test_a_rust_without_the_other_machine_s_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several the first that has it is taken."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        (folder / "rustc").parent.mkdir()
        (folder / "rustc").write_text(f"#!/bin/sh\necho {folder}/library\n")
        (folder / "rustc").chmod(0o755)
    monkeypatch.setenv("PATH", ":".join(map(str, folders)))
    with pytest.raises(BuildFailure, match=f"library for {THERE.triple}: libstd-rust-web-dev:"):
        requirements.rust_version(THERE)
    (folders[1] / "library").mkdir()
    assert THERE.rust == {"PATH": f"{folders[1]}:{folders[0]}:{folders[1]}"}
    assert here().rust == {}


def test_the_crate_asks_for_the_same_rust() -> None:
    with (BUILD.parent / "Cargo.toml").open("rb") as file:
        asked = tomllib.load(file)["package"]["rust-version"]
    assert asked == ".".join(map(str, requirements.RUST))


def test_a_named_source_needs_no_apt() -> None:
    assert missing({"PYTHON_SOURCE": "/x"}, "apt-get", "dpkg-source") == []


def test_xz_is_needed_for_a_tarball_that_is_packed_by_it() -> None:
    assert missing({"PYTHON_SOURCE": "/Python-3.11.9.tar.xz"}, "xz") == ["xz: xz-utils"]
    assert missing({"PYTHON_SOURCE": "/Python-3.11.9.tgz"}, "xz") == []


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(BuildFailure) as failure:
        requirements.require(missing({}, "gcc", "zstd", "apt-get"))
    text = str(failure.value)
    assert all(
        word in text for word in ("gcc: gcc", "zstd: zstd", "apt-get: apt", "PYTHON_SOURCE=")
    )


def test_the_build_stops_before_its_first_stage() -> None:
    done = subprocess.run(
        [sys.executable, BUILD],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "  make: make\n" in done.stderr
