#!/usr/bin/env python3
"""Gather the licences of what is inside: ``python3 launcher/licences.py FOLDER [MACHINE]``.

For a package: what the archives have in ``licenses/`` goes below the folder, and a line for each
work goes to standard output. The executable, that of this machine or of the named one, has been
built here before.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import build
from chain import archive, components
from chain.failure import BuildFailure
from chain.target import Target, here


def all_components(places: build.Places) -> list[components.Component]:
    """List what the last build took. Raises ``BuildFailure``."""
    tools = build.executable.Tools(places.build / "tools")
    for made in (places.origin, places.source, tools.folder):
        if not made.exists():
            raise BuildFailure(f"there is no {made}: run `make executable` first")
    return components.all_components(
        places.launcher, places.source, places.origin, tools.packages, places.target
    )


def gather(inside: Sequence[components.Component], folder: Path) -> None:
    """Copy the texts, a folder for each work."""
    for name, file in archive.licences(inside).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(file.read_bytes())


def main(arguments: Sequence[str]) -> int:
    """Gather; give the exit status."""
    if len(arguments) not in {1, 2}:
        print("usage: licences.py FOLDER [MACHINE]", file=sys.stderr)
        return 2
    target = Target(arguments[1]) if arguments[1:] else here()
    try:
        found = all_components(build.Places(build.ROOT, build.ROOT / "build", target=target))
        inside = [component for component in found if component.inside]
        gather(inside, Path(arguments[0]))
    except (BuildFailure, OSError) as failure:
        print(f"licences.py: {failure}", file=sys.stderr)
        return 1
    for component in inside:
        print(f"{component.name} {component.version}: {component.licence}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
