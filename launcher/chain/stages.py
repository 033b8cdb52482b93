"""Stages: what of the build is done again, and what is kept from the last time.

A stage has a key, the digest of everything that it is made from, and products. Its stamp holds the
key of the last time that it succeeded. Only a stage whose key is another, or whose products have
gone, is done again; the stamp is taken away first, so that an interrupted stage counts as undone.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .failure import BuildFailure


def digest(*inputs: str | Path) -> str:
    """Give the SHA-256 of texts, files and folders (names and contents, in order), in hexadecimal.

    A path counts by what it holds and not by where it lies: a clone elsewhere has the same digest.
    """
    whole = hashlib.sha256()
    for piece in inputs:
        if isinstance(piece, str):
            whole.update(b"text %d\n" % len(piece.encode()) + piece.encode())
            continue
        for name, file in _files(piece):
            data = file.read_bytes()
            whole.update(f"file {name} {len(data)}\n".encode() + data)
    return whole.hexdigest()


def _files(path: Path) -> Iterable[tuple[str, Path]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                yield file.relative_to(path).as_posix(), file
    else:
        yield path.name, path


class Stages:
    """Do the stages of one build folder, and say on standard output which were done and how long
    each took."""

    def __init__(self, stamps: Path) -> None:
        self._stamps = stamps
        stamps.mkdir(parents=True, exist_ok=True)

    def stage(
        self, name: str, key: str, products: Sequence[Path], work: Callable[[], object]
    ) -> None:
        """Have ``products`` made by ``work`` unless they were made from the same ``key`` before."""
        stamp = self._stamps / name
        if _stamped(stamp) == key and all(product.exists() for product in products):
            print(f"{name}: unchanged", flush=True)
            return
        stamp.unlink(missing_ok=True)
        print(f"{name}: …", flush=True)
        started = time.monotonic()
        work()
        for product in products:
            if not product.exists():
                raise BuildFailure(f"stage {name} ended without making {product}")
        # Renamed into place: a stamp is either whole or absent.
        fresh = stamp.with_suffix(".new")
        fresh.write_text(key)
        os.replace(fresh, stamp)
        print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)


def _stamped(stamp: Path) -> str | None:
    try:
        return stamp.read_text()
    except FileNotFoundError:
        return None
