#!/usr/bin/env python3
"""Prove that a commit gives the same bytes: ``python3 launcher/reproducible.py``.

Builds both flavours of HEAD twice from nothing, in two folders and under other circumstances, and
compares. What another machine gives depends on the versions of its gcc, rustc and C library too.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAVOURS: dict[str, list[str]] = {"sniproxy": [], "sniproxy-hashed": ["--hashed"]}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What must make no difference."""

    folder: str
    umask: int
    environment: dict[str, str]


BUILDS = (
    Circumstances("one", 0o022, {"TZ": "UTC", "LC_ALL": "C.UTF-8"}),
    Circumstances(
        "another/that has a longer name",
        0o077,
        {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "USER": "somebody", "RUSTFLAGS": "-g"},
    ),
)


def build(place: Path, circumstances: Circumstances) -> dict[str, str]:
    """Build both flavours of HEAD in ``place``; give the SHA-256 of each."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    # In a container of CI the folder is somebody else's, which git refuses unless told.
    take = ["git", "-c", f"safe.directory={ROOT}", "archive", "HEAD"]
    files = subprocess.run(take, cwd=ROOT, check=True, capture_output=True).stdout
    unpack = ["tar", "-x", "-C", str(place)]
    subprocess.run(unpack, input=files, check=True, umask=circumstances.umask)
    digests = {}
    for name, options in FLAVOURS.items():
        subprocess.run(
            [sys.executable, str(place / "launcher" / "build.py"), *options],
            check=True,
            env={**os.environ, **circumstances.environment},
            umask=circumstances.umask,
        )
        data = (place / "dist" / name).read_bytes()
        digests[name] = hashlib.sha256(data).hexdigest()
    return digests


def main() -> int:
    """Build twice; give the exit status."""
    workshop = ROOT / "build" / "reproducible"
    places = [workshop / circumstances.folder for circumstances in BUILDS]
    try:
        first, second = (
            build(place, circumstances) for place, circumstances in zip(places, BUILDS, strict=True)
        )
    except subprocess.CalledProcessError as error:
        print(f"reproducible.py: {error}", file=sys.stderr)
        return 1
    for name, digest in first.items():
        print(digest, name, "twice" if second[name] == digest else f"and {second[name]}")
    if first != second:
        print(f"reproducible.py: the builds differ, see both below {workshop}", file=sys.stderr)
        return 1
    shutil.rmtree(workshop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
