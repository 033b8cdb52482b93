"""Executable: PyOxidizer packs the modules, cargo links them and the interpreter into one file.

PyOxidizer (from PyPI, its hash pinned) compiles the modules to bytecode; the launcher crate beside
this folder includes that, and libpython.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import commands
from .failure import BuildFailure
from .interpreter import Interpreter
from .stages import digest
from .target import Target, here

PYO3_CONFIGURATION = """\
implementation=CPython
version=3.11
shared=false
abi3=false
executable={python}
pointer_width=64
suppress_build_script_link_lines=true
"""
"""What pyo3 would ask the interpreter. The trap: PyOxidizer's own version of this file exports
every symbol, after which the linker can drop none."""

RESOURCES = ("default_python_config.rs", "packed-resources")
"""What of PyOxidizer's work goes in: the same for all machines. Its libpython does not: it would be
this machine's, and our own has the table of modules too."""

LINKING = (
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=pie",
    # A build-id is a digest of things that are stripped later on.
    "-Clink-arg=-Wl,--build-id=none",
)

LINKER = "static-pie-gcc"
"""What stands before gcc where a program is linked, in the crate's folder."""

RELOCATIONS = ("-Clink-arg=-Wl,-z,pack-relative-relocs",)
"""Relative relocations packed: a tenth of the file, and of the work at the start."""

LIBRARIES = {
    "libc.a": "libc6-dev",
    "libgcc.a": "gcc",
    "libgcc_eh.a": "gcc",
}
"""What the linker takes of the C library and the compiler's, and where Debian has it."""

REFUSED = (
    "LD_PRELOAD",
    "PYTHONPATH",
    "PYTHONHOME",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
)
"""Variables of the caller that would get into the product."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The virtual environment that holds PyOxidizer and ``idna``."""

    folder: Path

    @property
    def pyoxidizer(self) -> Path:
        return self.folder / "bin" / "pyoxidizer"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where pip put ``idna``."""
        (found,) = (self.folder / "lib").glob("python3*/site-packages")
        return found


def install_tools(folder: Path, requirements: Path, log: Path) -> Tools:
    """Make the virtual environment, each package at the version and hash that ``requirements``
    pins."""
    shutil.rmtree(folder, ignore_errors=True)
    tools = Tools(folder)
    commands.run([sys.executable, "-m", "venv", folder], log=log)
    pip: list[str | Path] = [tools.python, "-m", "pip", "--disable-pip-version-check", "install"]
    pinned: list[str | Path] = [
        "--require-hashes",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-r",
        requirements,
    ]
    commands.run([*pip, *pinned], log=log)
    return tools


def lay_out(modules: Mapping[str, Path], folder: Path) -> None:
    """Copy ``modules`` to the new ``folder`` as packages that PyOxidizer can read."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, file in modules.items():
        path = folder / name.replace(".", "/")
        target = path / "__init__.py" if file.name == "__init__.py" else path.with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def pack(
    tools: Tools,
    project: Path,
    archive: Path,
    packages: Path,
    *,
    hashed: bool,
    destination: Path,
    workshop: Path,
    log: Path,
) -> None:
    """Run PyOxidizer on ``project``'s pyoxidizer.bzl; put what it makes into ``destination``."""
    with archive.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    variables = {
        "distribution": str(archive),
        "distribution_sha256": sha256,
        "packages": str(packages),
        "flavour": "hashed" if hashed else "plain",
    }
    stage = workshop / "pyoxidizer"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    shutil.copyfile(project, stage / "pyoxidizer.bzl")
    command: list[str | Path] = [tools.pyoxidizer, "--system-rust", "build", "--release"]
    command += ["--path", stage]
    for name, value in variables.items():
        command += ["--var", name, value]
    environment = {
        "PYOXIDIZER_CACHE_DIR": str(stage / "cache"),
        # The order of a frozenset in bytecode is that of its hashes.
        "PYTHONHASHSEED": "0",
        # No columns beside the line numbers: nothing here shows source.
        "PYTHONNODEBUGRANGES": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    commands.run([*command, "resources"], environment=clean(environment), log=log)
    made = stage / "build" / here().triple / "release" / "resources"
    destination.mkdir(parents=True, exist_ok=True)
    for name in RESOURCES:
        replace_if_other(made / name, destination / name)
    shutil.rmtree(stage)


def replace_if_other(fresh: Path, kept: Path) -> None:
    """Put ``fresh`` in place of ``kept`` unless both hold the same: cargo goes by the time."""
    if kept.exists() and kept.read_bytes() == fresh.read_bytes():
        return
    shutil.copyfile(fresh, kept)


def link_inputs(target: Target) -> list[str | Path]:
    """List what gets into the executable or decides on it, and that cargo asks nobody about: the
    compiler and the linker, by their versions, and their libraries."""
    gcc = target.tool("gcc")
    inputs: list[str | Path] = [
        commands.output_of([tool, "--version"]).splitlines()[0] for tool in (gcc, target.tool("ld"))
    ]
    return [*inputs, *(library(target, name) for name in LIBRARIES)]


def library(target: Target, name: str) -> Path:
    """Find one of ``LIBRARIES``. Raises ``BuildFailure`` where the compiler finds none."""
    gcc = target.tool("gcc")
    # A name that gcc does not find it gives back as it is.
    path = Path(commands.output_of([gcc, f"-print-file-name={name}"]).strip())
    if not path.is_absolute():
        wanted = target.package(LIBRARIES[name])
        raise BuildFailure(f"{gcc} finds no {name} to link: install {wanted} (Debian)")
    return path


def link(
    target: Target,
    crate: Path,
    resources: Path,
    interpreter: Interpreter,
    folder: Path,
    output: Path,
    log: Path,
    without: Collection[str] = (),
) -> None:
    """Compile the launcher ``crate`` with ``resources`` and libpython in ``folder``; put the
    executable at ``output``.

    ``without`` names measures to leave out, to see what each brings: relocations, strip."""
    configuration = folder / "pyo3-configuration.txt"
    folder.mkdir(parents=True, exist_ok=True)
    text = PYO3_CONFIGURATION.format(python=interpreter.python)
    # cargo compiles pyo3 again for each newer file, whatever it holds.
    if not configuration.exists() or configuration.read_text() != text:
        configuration.write_text(text)
    flags = [*LINKING, *(() if "relocations" in without else RELOCATIONS)]
    environment = {
        "SNIPROXY_RESOURCES": str(resources),
        "SNIPROXY_INTERPRETER": str(interpreter.library_file.parent),
        "PYO3_CONFIG_FILE": str(configuration),
        "CARGO_ENCODED_RUSTFLAGS": "\x1f".join([*flags, *_remapping(target, crate, folder.parent)]),
        "CARGO_INCREMENTAL": "0",
        # The trap: to cargo, an executable is as fresh as ever after an update of the C library.
        "SNIPROXY_LINKED": digest(*link_inputs(target)),
        "SNIPROXY_GCC": target.tool("gcc"),
        **target.rust,
    }
    if "strip" in without:
        environment["CARGO_PROFILE_RELEASE_STRIP"] = "none"
    command = ["cargo", "build", "--release", "--locked", "--target", target.triple]
    command += ["--config", f'target.{target.triple}.linker="{crate / LINKER}"']
    commands.run(
        [*command, "--target-dir", folder, "--manifest-path", crate / "Cargo.toml"],
        folder=crate,
        environment=clean(environment),
        log=log,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f".{output.name}.new")
    shutil.copy(folder / target.triple / "release" / "sniproxy", fresh)
    os.replace(fresh, output)


def prove(command: Sequence[str | Path], environment: Mapping[str, str]) -> str:
    """Have the new executable, started by ``command``, say its version: it starts, and with it all
    that starts it."""
    line = commands.output_of([*command, "--version"], environment)
    if not line.startswith("sniproxy "):
        raise BuildFailure(f"{command[-1]} --version says {line!r}")
    return line.strip()


def clean(added: Mapping[str, str]) -> dict[str, str]:
    """Give the environment of a program: ours but for what is refused, and ``added``."""
    return {**dict.fromkeys(REFUSED, ""), **added}


def _remapping(target: Target, crate: Path, build: Path) -> list[str]:
    """Have the paths of this machine replaced by names: panics carry the path of their source."""
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    sysroot = commands.output_of(["rustc", "--print", "sysroot"], target.rust).strip()
    names = {str(home): "/cargo", sysroot: "/rust", str(crate): "/launcher", str(build): "/build"}
    return [f"--remap-path-prefix={path}={name}" for path, name in names.items()]
