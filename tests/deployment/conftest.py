"""Fixtures of the deployment tests: packages, roots, and what came of booting them."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import sniproxy
from launcher.chain import archive as archives
from launcher.chain import components
from tests.deployment.machine import MACHINES, REPOSITORY, Report, boot, choose

RELEASES = ("bookworm", "trixie")

NEWER = "9.9.9"
GONE = ("docs/how-to/users.md", "chroot/sniproxy.socket.d/addresses.conf")
"""The version of a release to come, and what it has no more."""

collect_ignore = ["inside"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--machine",
        choices=MACHINES,
        help="what boots the roots (default: nspawn, or qemu where that can't run)",
    )


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave these to `make test-deployment`: they take minutes, and root."""
    named = any("deployment" in argument for argument in config.invocation_params.args)
    return None if named else True


@pytest.fixture(scope="session")
def executable() -> pathlib.Path:
    path = REPOSITORY / "dist" / "sniproxy"
    if not path.exists():
        pytest.skip("dist/sniproxy is missing: run `make executable` first")
    return path


@pytest.fixture(scope="session")
def works(executable: pathlib.Path) -> list[components.Component]:
    """List the works of others that the build of the executable took."""
    made = REPOSITORY / "build"
    if not (made / "source.json").exists() or not shutil.which("cargo"):
        pytest.skip("the build of dist/sniproxy is missing here: run `make executable` first")
    (packages,) = made.glob("tools/lib/python3*/site-packages")
    crate = REPOSITORY / "launcher"
    return components.all_components(crate, made / "source", made / "source.json", packages)


def make_archive(
    executable: pathlib.Path,
    works: list[components.Component],
    folder: pathlib.Path,
    *left_out: str,
) -> pathlib.Path:
    """Make the archive of an executable, without its bill of materials and what is ``left_out``."""
    version = subprocess.run(
        [executable, "--version"], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    name = f"sniproxy-{version}-{os.uname().machine}-linux"
    path = folder / f"{name}.tar.xz"
    found = archives.contents(REPOSITORY, executable, "{}", works)
    archives.write(path, name, {one: found[one] for one in found if one not in left_out}, 0)
    return path


@pytest.fixture(scope="session")
def archive(
    executable: pathlib.Path,
    works: list[components.Component],
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    return make_archive(executable, works, tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="session")
def newer_archive(
    executable: pathlib.Path,
    works: list[components.Component],
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    """Make the archive of a release to come: of the same program, but for its number, with works of
    other versions inside, and without a page and an example."""
    folder = tmp_path_factory.mktemp("newer")
    program = folder / "sniproxy"
    version, newer = (text.encode() for text in (sniproxy.__version__, NEWER))
    assert len(version) == len(newer)
    program.write_bytes(executable.read_bytes().replace(version, newer))
    program.chmod(0o755)
    others = [dataclasses.replace(work, version=f"{work.version}+1") for work in works]
    return make_archive(program, others, folder, *GONE)


@pytest.fixture(scope="session")
def packages(
    works: list[components.Component], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """Build the package twice, as two versions: one to install and one to upgrade to; and that of
    the hashed flavour."""
    if not shutil.which("dh"):
        pytest.skip("dh is missing: install debhelper")
    if not (REPOSITORY / "dist" / "sniproxy-hashed").exists():
        pytest.skip("dist/sniproxy-hashed is missing: run `make executable HASHED=1` first")
    folder = tmp_path_factory.mktemp("packages")
    made = {}
    for name, revision, hashed in (("old", "1", ""), ("new", "2", ""), ("hashed", "1", "1")):
        done = subprocess.run(
            ["sh", REPOSITORY / "chroot" / "debian" / "build", folder / name],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"REVISION": revision, "HASHED": hashed},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (made[name],) = (folder / name).glob("*.deb")
    return made


@pytest.fixture(scope="session")
def report_of(
    request: pytest.FixtureRequest,
    packages: dict[str, pathlib.Path],
    archive: pathlib.Path,
    newer_archive: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Report]]:
    """Make and boot all roots in question at once; give what the tests in each have reported."""
    try:
        machine = choose(request.config.getoption("--machine"))
    except LookupError as error:
        pytest.skip(f"a machine to boot is missing: {error}")
    selected = [item.name for item in request.session.items]
    folder = tmp_path_factory.mktemp("roots")
    brought = {f"{name}.deb": package for name, package in packages.items()}
    brought |= {archive.name: archive, "newer.tar.xz": newer_archive}
    with ThreadPoolExecutor(len(RELEASES)) as pool:
        futures: dict[str, Future[Report]] = {
            release: pool.submit(boot, machine, release, folder / release, brought)
            for release in RELEASES
            if any(release in name for name in selected)
        }
        yield lambda release: futures[release].result()
    shutil.rmtree(folder, ignore_errors=True)  # pytest itself may clear up at the same time
