#!/usr/bin/env python3
"""Make the archives for everybody: ``python3 launcher/archives.py [MACHINE]``.

Builds both flavours, for another machine if one is named, and leaves beside each an archive and a
bill of materials.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import build
import licences
from chain import archive, bill, components
from chain.failure import told
from chain.target import Target, here


def flavour_archive(
    found: list[components.Component], target: Target, *, hashed: bool
) -> list[Path]:
    """Build a flavour; write its archive and its bill of materials."""
    executable = build.output(target, hashed=hashed)
    name = executable.name
    version = build.make(executable, hashed=hashed, target=target).split()[1]
    sha256 = hashlib.sha256(executable.read_bytes()).hexdigest()
    full_name = f"{name}-{version}-{target.machine}-linux"
    text = bill.bill(name, version, sha256, found)
    made = [executable.with_name(f"{full_name}{end}") for end in (".tar.xz", ".cdx.json")]
    layout = archive.contents(build.ROOT, executable, text, found)
    archive.write(made[0], full_name, layout, build.EPOCH)
    made[1].write_text(text)
    return made


def make(target: Target) -> list[Path]:
    """Make them all. Raises ``BuildFailure``."""
    places = build.Places(build.ROOT, build.ROOT / "build", target=target)
    build.make(build.output(target, hashed=False), hashed=False, target=target)
    found = licences.all_components(places)
    return [
        file for hashed in (False, True) for file in flavour_archive(found, target, hashed=hashed)
    ]


def main(arguments: Sequence[str]) -> int:
    """Make them all; give the exit status."""
    target = Target(arguments[0]) if arguments else here()
    return told("archives.py", lambda: make(target))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
