#!/usr/bin/env python3
"""Make an image for containers: ``python3 launcher/image.py [EXECUTABLE]``.

It is for the machine that the executable is for, and goes beside that. ``--join IMAGE…`` puts
such files for several machines, of one version, into one, here. SOURCE_DATE_EPOCH is the time that
it says it is from (by default that of all products).
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import build
import licences
from chain import image
from chain.failure import BuildFailure, told
from chain.target import Target, here


def written(name: str, text: str) -> str:
    """Find the one thing in quotes that a file of ours gives a name."""
    (found,) = re.findall(rf'^{name} = "(.*)"$', (build.ROOT / text).read_text(), re.MULTILINE)
    return str(found)


def make(executable: Path, epoch: int) -> Path:
    """Make the image of an executable. Raises ``BuildFailure``."""
    if not executable.exists():
        raise BuildFailure(f"there is no {executable}: run `make executable` first")
    machine, architecture = image.machine(executable)
    version = written("__version__", "sniproxy/__init__.py")
    labels = {
        image.VERSION: version,
        "org.opencontainers.image.title": executable.name,
        "org.opencontainers.image.licenses": "MIT",
        "org.opencontainers.image.source": written("Repository", "pyproject.toml"),
    }
    places = build.Places(build.ROOT, build.ROOT / "build", target=Target(machine))
    works = licences.all_components(places)
    found = image.contents(build.ROOT, executable, version, works)
    file = executable.with_name(f"{executable.name}-{version}-{machine}.oci.tar")
    name = f"localhost/{executable.name}"
    image.write(file, image.image(found, architecture, name, labels, epoch), epoch)
    return file


def join(files: Sequence[Path], epoch: int) -> Path:
    """Put images into one. Raises ``BuildFailure``."""
    joined = image.join(image.read(file) for file in files)
    first, _, _ = files[0].name.rpartition("-")
    file = Path(f"{first}.oci.tar")
    image.write(file, joined, epoch)
    return file


def main(arguments: Sequence[str]) -> int:
    """Make or join; give the exit status."""
    parser = argparse.ArgumentParser(prog="image.py", description="Make an image for containers.")
    parser.add_argument("--join", action="store_true", help="put such images into one")
    parser.add_argument("files", nargs="*", type=Path, help="the executable, or images to join")
    wanted = parser.parse_args(arguments)
    if len(wanted.files) > 1 and not wanted.join:
        parser.error("one executable at a time")
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", build.EPOCH))

    def made() -> list[Path]:
        if wanted.join:
            return [join(wanted.files, epoch)]
        (executable,) = wanted.files or [build.output(here(), hashed=False)]
        return [make(executable.absolute(), epoch)]

    return told("image.py", made)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
