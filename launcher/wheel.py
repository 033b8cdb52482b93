#!/usr/bin/env python3
"""Make the source distribution and the wheel: ``python3 launcher/wheel.py``.

Both go into ``dist/``; equal sources give equal bytes. The wheel is made from the distribution as
it is, by what ``wheel.txt`` pins, and from nothing else that lies here.
"""

import os
import shutil
import sys
import tarfile
from pathlib import Path

import build
from chain import archive, commands, executable
from chain.failure import told
from chain.stages import Stages, digest

FILES = (*archive.PAGES, "pyproject.toml", "setup.py")
FOLDERS = ("docs", "sniproxy")
"""What of the repository goes in."""

MANIFEST = f"include {' '.join(archive.PAGES)}\ngraft docs\n"
"""What of that setuptools would leave out."""

HOOK = "import sys, setuptools.build_meta as made; print(getattr(made, sys.argv[1])(sys.argv[2]))"
"""Calls one of PEP 517's hooks, with the folder for what it makes."""


def normalised(distribution: Path) -> bytes:
    """Give a source distribution anew, without owners, modes and times of this machine."""
    found: archive.Contents = {}
    with tarfile.open(distribution) as made:
        for entry in made:
            if entry.isfile() and (stream := made.extractfile(entry)):
                found[entry.name] = stream.read()
    return archive.gzipped(archive.tar("", found, build.EPOCH))


def install_tools(place: Path, log: Path) -> executable.Tools:
    """Have what is pinned, below the folder ``place``."""
    pinned = build.ROOT / "launcher" / "wheel.txt"
    tools = executable.Tools(place / "wheel-tools")
    key = digest(pinned, sys.version, sys.executable)

    def work() -> None:
        executable.install_tools(tools.folder, pinned, log)

    Stages(place / "stamps").stage("wheel-tools", key, [tools.python], work)
    return tools


def make(work: Path, output: Path) -> list[Path]:
    """Make both, by way of the folder ``work``. Raises ``BuildFailure``."""
    shutil.rmtree(work, ignore_errors=True)
    source, made = work / "source", work / "made"
    made.mkdir(parents=True)
    for name in FOLDERS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(build.ROOT / name, source / name, ignore=unwanted)
    for name in FILES:
        shutil.copy(build.ROOT / name, source)
    (source / "MANIFEST.in").write_text(MANIFEST)
    names = [file.relative_to(source).as_posix() for file in source.rglob("*")]
    for name in [name for name in names if name.endswith(".md")]:
        text = archive.page((source / name).read_text(), name, {}, names)
        (source / name).write_text(text)
    log = work / "log"
    tools = install_tools(work.parent, log)
    # Whatever the caller has set, the wheel is of the plain flavour.
    environment = {"SOURCE_DATE_EPOCH": str(build.EPOCH), "SNIPROXY_HASHED": "0"}

    def hook(name: str, folder: Path) -> None:
        words = [tools.python, "-c", HOOK, name, made]
        commands.run(words, log=log, folder=folder, environment=environment)

    hook("build_sdist", source)
    (distribution,) = made.glob("*.tar.gz")
    archive.put(distribution, normalised(distribution))
    commands.run(["tar", "-x", "-f", distribution, "-C", work], log=log)
    hook("build_wheel", work / distribution.name.removesuffix(".tar.gz"))
    output.mkdir(exist_ok=True)
    return [Path(shutil.copy(file, output)) for file in sorted(made.iterdir())]


def main() -> int:
    """Make both; give the exit status."""
    os.umask(0o022)
    return told("wheel.py", lambda: make(build.ROOT / "build" / "wheel", build.ROOT / "dist"))


if __name__ == "__main__":
    sys.exit(main())
