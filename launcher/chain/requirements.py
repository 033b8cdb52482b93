"""Requirements: the tools and files that the build needs, each with the package that has it.

All are looked for before anything starts, so that nobody waits for minutes to learn the next name.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping

from . import commands
from .failure import BuildFailure
from .target import MACHINES, Target

RUST = (1, 85)
"""The oldest Rust that compiles the launcher's crates (Cargo.toml says so too)."""

RUST_PACKAGES = "rustc and cargo (Debian 13), rustc-web and cargo-web (Debian 12), or rustup.rs"

TOOLS = {
    "gcc": "gcc",
    "ar": "binutils",
    "objcopy": "binutils",
    "make": "make",
    "tar": "tar",
    "zstd": "zstd",
    "cargo": RUST_PACKAGES,
    "rustc": RUST_PACKAGES,
}
"""What every build runs, and the Debian package of it."""

XZ = {"xz": "xz-utils"}
"""What tar runs to unpack such a tarball."""

DEBIAN_TOOLS = {"apt-get": "apt", "dpkg-source": "dpkg-dev", "patch": "patch", **XZ}
"""What getting Debian's source package runs besides."""

FILES = {
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/include/linux/types.h": "linux-libc-dev",
}

MODULES = {"venv": "python3-venv", "ensurepip": "python3-venv"}


def rust_version(target: Target) -> str:
    """Give what the Rust compiler says its version is."""
    return commands.output_of(["rustc", "--version"], target.rust)


def compiled_for(target: Target) -> str:
    """Give what the C compiler says it compiles for."""
    return commands.output_of([target.tool("gcc"), "-dumpmachine"]).strip()


def missing(
    environment: Mapping[str, str],
    target: Target,
    find_tool: Callable[[str], str | None] = shutil.which,
    has_file: Callable[[str], bool] = os.path.exists,
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
    says_version: Callable[[Target], str] = rust_version,
    compiles_for: Callable[[Target], str] = compiled_for,
) -> list[str]:
    """List what the build for ``target`` needs and the machine has not, one ``what: where to get
    it`` each."""
    if target.machine not in MACHINES:
        return [f"{' or '.join(MACHINES)}, and not {target.machine}: another machine"]
    tarball = environment.get("PYTHON_SOURCE")
    if not tarball:
        tools = {**TOOLS, **DEBIAN_TOOLS}
    else:
        tools = {**TOOLS, **XZ} if tarball.endswith("xz") else TOOLS
    files = FILES
    if target.foreign:
        cross = {target.tool("gcc"): target.package("gcc")}
        tools = {**tools, **cross, **dict.fromkeys(target.emulator, "qemu-user-static")}
        files = {**FILES, f"/usr/lib/{target.debian}/libc.a": target.package("libc6-dev")}
    return [
        *(_wrong_rust(target, says_version) if find_tool("rustc") else ()),
        *(_wrong_compiler(target, compiles_for) if find_tool(target.tool("gcc")) else ()),
        *(f"{tool}: {package}" for tool, package in tools.items() if find_tool(tool) is None),
        *(f"{file}: {package}" for file, package in files.items() if not has_file(file)),
        *(f"python3 -m {name}: {pack}" for name, pack in MODULES.items() if not has_module(name)),
    ]


def _wrong_rust(target: Target, says_version: Callable[[Target], str]) -> Iterator[str]:
    try:
        version = says_version(target)
    except BuildFailure as failure:
        yield str(failure)
        return
    found = re.search(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < RUST:
        wanted = ".".join(map(str, RUST))
        yield f"rustc {wanted} or newer, here is {found and found[0]}: {RUST_PACKAGES}"


def _wrong_compiler(target: Target, compiles_for: Callable[[Target], str]) -> Iterator[str]:
    compiled = compiles_for(target)
    # What a machine is, the kernel says; the system above it may be one of 32 bits.
    if not compiled.startswith(f"{target.machine}-"):
        system = f"a Debian of {MACHINES[target.machine]}"
        yield f"a gcc for {target.machine}, here is one for {compiled}: {system}"


def require(lacking: Iterable[str]) -> None:
    """Stop the build when anything is lacking, with the whole list."""
    lines = [f"  {line}" for line in lacking]
    if not lines:
        return
    advice = "Install what stands after the colons (Debian's names of packages)."
    if any("apt-get" in line for line in lines):
        advice += (
            "\nWhere there is no apt, give CPython's source yourself: "
            "PYTHON_SOURCE=path-or-URL PYTHON_SOURCE_SHA256=…"
        )
    raise BuildFailure("\n".join(["The build needs these, and they are not here:", *lines, advice]))
