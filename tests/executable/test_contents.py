"""What the build says is inside: every work of others, with its licence."""

import pathlib
import subprocess
import tomllib

import pytest

from launcher.chain import components
from tests.executable.conftest import ROOT

LAUNCHER = ROOT / "launcher"
BUILD = ROOT / "build"
LICENCES = pathlib.Path("/usr/share/doc/libc6-dev/copyright")


@pytest.fixture(scope="module")
def found() -> list[components.Component]:
    if not (BUILD / "source.json").exists():
        pytest.skip("a build, whose components these are, is missing: say make executable first")
    if not LICENCES.exists():
        pytest.skip(f"{LICENCES} is missing: archives are made on Debian")
    (packages,) = (BUILD / "tools" / "lib").glob("python3*/site-packages")
    return components.all_components(LAUNCHER, BUILD / "source", BUILD / "source.json", packages)


def test_the_interpreter_the_libraries_and_idna_are_inside(
    found: list[components.Component],
) -> None:
    inside = {one.name for one in found if one.inside}
    assert {"CPython", "idna", "pyembed", "Rust standard library", "GNU C library"} <= inside
    assert {"PyOxidizer", "syn"} <= {one.name for one in found} - inside


def test_each_has_its_version_and_licence(found: list[components.Component]) -> None:
    for one in found:
        assert one.version
        assert one.licence
        if one.inside:
            assert one.files
            assert all(file.stat().st_size for file in one.files)


def test_the_c_library_is_this_machine_s(found: list[components.Component]) -> None:
    """Another machine's may be installed beside it."""
    command = ["dpkg-query", "-W", "-f", "${Version}\n", "libc6-dev"]
    installed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert next(one.version for one in found if one.name == "GNU C library") in installed


def test_each_crate_has_the_digest_that_cargo_verified(found: list[components.Component]) -> None:
    with (LAUNCHER / "Cargo.lock").open("rb") as file:
        locked = {entry["name"]: entry.get("checksum") for entry in tomllib.load(file)["package"]}
    crates = [one for one in found if one.purl.startswith("pkg:cargo/")]
    assert "pyo3" in {one.name for one in crates}
    assert all(one.sha256 == locked[one.name] for one in crates)
