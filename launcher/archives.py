#!/usr/bin/env python3
"""Make the archives for everybody: ``python3 launcher/archives.py``.

Builds both flavours and leaves in ``dist/`` for each an archive and a bill of materials.
"""

import hashlib
import platform
import sys
from pathlib import Path

import build
import licences
from chain import archive, bill, components
from chain.failure import BuildFailure


def flavour_archive(found: list[components.Component], *, hashed: bool) -> list[Path]:
    """Build a flavour; write its archive and its bill of materials."""
    name = build.output_name(hashed=hashed)
    executable = build.ROOT / "dist" / name
    version = build.make(executable, hashed=hashed).split()[1]
    sha256 = hashlib.sha256(executable.read_bytes()).hexdigest()
    full_name = f"{name}-{version}-{platform.machine()}-linux"
    text = bill.bill(name, version, sha256, found)
    made = [executable.with_name(f"{full_name}{end}") for end in (".tar.xz", ".cdx.json")]
    layout = archive.contents(build.ROOT, executable, text, found)
    archive.write(made[0], full_name, layout, build.EPOCH)
    made[1].write_text(text)
    return made


def main() -> int:
    """Make them all; give the exit status."""
    places = build.Places(build.ROOT, build.ROOT / "build")
    try:
        build.make(build.ROOT / "dist" / build.output_name(hashed=False), hashed=False)
        found = licences.all_components(places)
        made = [file for hashed in (False, True) for file in flavour_archive(found, hashed=hashed)]
    except BuildFailure as failure:
        print(f"archives.py: {failure}", file=sys.stderr)
        return 1
    for file in made:
        print(f"{file.stat().st_size:>12,} {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
