"""Components: everything of others that is inside the executable, and the licence of each.

The interpreter, the crates that cargo links, idna, and the parts of the C and Rust libraries that a
static program takes along. What only takes part in the build (PyOxidizer, procedural macros, build
scripts) is listed too, and marked as such.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

from . import commands
from .executable import library
from .failure import BuildFailure
from .target import Target, here

DOCUMENTS = Path("/usr/share/doc")
COMMON_LICENCES = Path("/usr/share/common-licenses")
"""Where Debian keeps the licences of its packages, and the texts that several of them share."""

LICENCE_FILES = re.compile(r"LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Component:
    """A work of others: ``licence`` is an SPDX expression, ``purl`` a package URL, ``sha256`` the
    digest that the build verified, "" where something else vouches for it."""

    name: str
    version: str
    licence: str
    purl: str
    sha256: str
    files: tuple[Path, ...]
    inside: bool = True


def all_components(
    crate: Path, source: Path, origin: Path, packages: Path, target: Target | None = None
) -> list[Component]:
    """List what is inside, if no ``target`` is given for this machine: the crate at ``crate``,
    CPython's unpacked ``source`` and where it came from, and the folder of the Python
    ``packages``."""
    target = target or here()
    python = interpreter(source, json.loads(origin.read_text()))
    requirements = (crate / "requirements.txt").read_text()
    return [
        python,
        _idna(packages, requirements),
        *_crates(crate, python, target),
        _rust_library(target),
        *_c_libraries(target),
        _pyoxidizer(requirements),
    ]


def interpreter(source: Path, origin: Mapping[str, str]) -> Component:
    """Describe CPython by its unpacked ``source`` and its ``origin``."""
    header = (source / "Include" / "patchlevel.h").read_text()
    (number,) = re.findall(r'^#define PY_VERSION\s+"([^"]+)"', header, re.MULTILINE)
    version = origin["version"]
    if origin["name"].endswith(".dsc"):
        purl = f"pkg:deb/debian/python3.11@{version}?arch=source"
    else:
        purl = f"pkg:generic/python@{number}"
    # The second: of the works that CPython took in, each under its own licence.
    files = (source / "LICENSE", source / "Doc" / "license.rst")
    return Component("CPython", version, "Python-2.0", purl, origin["sha256"], files)


def _idna(packages: Path, requirements: str) -> Component:
    version, sha256 = _pinned("idna", requirements)
    files = (packages / f"idna-{version}.dist-info" / "licenses" / "LICENSE.md",)
    purl = f"pkg:pypi/idna@{version}"
    return Component("idna", version, "BSD-3-Clause", purl, sha256, files)


def _pyoxidizer(requirements: str) -> Component:
    # Of its digests, one a machine, pip has verified the one that fits.
    version, _ = _pinned("pyoxidizer", requirements)
    purl = f"pkg:pypi/pyoxidizer@{version}"
    return Component("PyOxidizer", version, "MPL-2.0", purl, "", (), inside=False)


def _pinned(name: str, requirements: str) -> tuple[str, str]:
    pattern = rf"(?ms)^{name}==(\S+).*?--hash=sha256:(\w+)"
    match = re.search(pattern, requirements)
    if match is None:
        raise BuildFailure(f"{name} is not pinned in requirements.txt")
    return match[1], match[2]


def _crates(crate: Path, python: Component, target: Target) -> list[Component]:
    """List the crates of Cargo.lock that take part in a build for ``target``."""
    command: list[str | Path] = ["cargo", "metadata", "--locked", "--format-version", "1"]
    command += ["--filter-platform", target.triple, "--manifest-path", crate / "Cargo.toml"]
    described = json.loads(commands.output_of(command, target.rust))
    with (crate / "Cargo.lock").open("rb") as file:
        locked = tomllib.load(file)["package"]
    digests = {(entry["name"], entry["version"]): entry.get("checksum", "") for entry in locked}
    linked = linked_crates(described)
    root = described["resolve"]["root"]
    found = []
    for package in described["packages"]:
        if package["id"] == root:
            continue
        name, version = package["name"], package["version"]
        licence = package["license"].replace("/", " OR ")
        files = licence_files(Path(package["manifest_path"]).parent)
        inside = package["id"] in linked
        if inside and not files:
            # PyOxidizer's crates are under CPython's own licence and bring no copy of it.
            if "Python-2.0" not in licence:
                raise BuildFailure(f"the crate {name} brings no text of its licence, {licence}")
            files = [python.files[0]]
        purl = f"pkg:cargo/{name}@{version}"
        digest = digests[name, version]
        found.append(Component(name, version, licence, purl, digest, tuple(files), inside))
    return sorted(found, key=lambda one: (one.name, one.version))


def linked_crates(described: Mapping[str, Any]) -> set[str]:
    """Follow what ``cargo metadata`` describes from the root over ordinary dependencies; give the
    ids. A procedural macro runs in the compiler and is not linked, nor is what only it needs."""
    packages = {package["id"]: package for package in described["packages"]}
    nodes = {node["id"]: node for node in described["resolve"]["nodes"]}
    linked: set[str] = set()
    waiting = [described["resolve"]["root"]]
    while waiting:
        one = waiting.pop()
        if one in linked or any("proc-macro" in made["kind"] for made in packages[one]["targets"]):
            continue
        linked.add(one)
        waiting += [
            needed["pkg"]
            for needed in nodes[one]["deps"]
            if any(kind["kind"] is None for kind in needed["dep_kinds"])
        ]
    return linked


def licence_files(folder: Path) -> list[Path]:
    """List the texts of licences that lie in ``folder``."""
    return sorted(
        file for file in folder.iterdir() if file.is_file() and LICENCE_FILES.search(file.name)
    )


def _rust_library(target: Target) -> Component:
    version = commands.output_of(["rustc", "--version"], target.rust).split()[1]
    sysroot = Path(commands.output_of(["rustc", "--print", "sysroot"], target.rust).strip())
    documents = sysroot / "share" / "doc" / "rust"
    files = existing(
        "the Rust library's licence",
        [documents / "COPYRIGHT-library.html", *sorted(documents.glob("licenses/*"))],
        [documents / "COPYRIGHT", documents / "LICENSE-MIT", documents / "LICENSE-APACHE"],
        [DOCUMENTS / "libstd-rust-web-dev" / "copyright"],
        [DOCUMENTS / "libstd-rust-dev" / "copyright"],
    )
    purl = f"pkg:generic/rust-std@{version}"
    return Component("Rust standard library", version, "MIT OR Apache-2.0", purl, "", files)


def _c_libraries(target: Target) -> Iterable[Component]:
    """Describe what the linker takes besides, by the packages that have it: of both, several may be
    installed, each for another machine."""
    for name, file, licence, text in (
        ("GNU C library", "libc.a", "LGPL-2.1-or-later", "LGPL-2.1"),
        ("GCC support library", "libgcc.a", "GPL-3.0-or-later WITH GCC-exception-3.1", "GPL-3"),
    ):
        package, version, source, source_version = _debian_package(library(target, file))
        purl = f"pkg:deb/debian/{source}@{source_version}?arch=source"
        copyright_file = DOCUMENTS / package / "copyright"
        files = existing(f"the {name}'s licence", [copyright_file, COMMON_LICENCES / text])
        yield Component(name, version, licence, purl, "", files)


def _debian_package(file: Path) -> tuple[str, str, str, str]:
    """Give the package that ``file`` is of and its version, and the same of its source."""
    if which("dpkg-query") is None:
        raise BuildFailure(f"an archive needs the licence of {file}, and Debian's packages have it")
    owner, _, _ = commands.output_of(["dpkg-query", "-S", file.resolve()]).rpartition(": ")
    fields = "${Package} ${Version} ${source:Package} ${source:Version}"
    package, version, source, source_version = commands.output_of(
        ["dpkg-query", "-W", "-f", fields, owner]
    ).split()
    return package, version, source, source_version


def existing(what: str, *choices: Sequence[Path]) -> tuple[Path, ...]:
    """Give the first of ``choices`` whose files are all there."""
    for files in choices:
        if files and all(file.is_file() for file in files):
            return tuple(files)
    looked = ", ".join(str(file) for files in choices for file in files)
    raise BuildFailure(f"{what} is not on this machine, and an archive needs it: {looked}")
