"""Archive: what somebody without a package of their distribution downloads, as one ``.tar.xz``.

The executable under all of its names, the manual pages, everything that deploys it, and the
licences of what is inside. Equal contents give equal bytes.
"""

import gzip
import io
import lzma
import os.path
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from .components import Component
from .failure import BuildFailure

NAMES = ("sniproxy-hostname", "sniproxy-check", "sniproxy-listen", "sniproxy-status")
"""The commands besides ``sniproxy``, which are links to it."""

PAGES = ("README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE")
FOLDERS = ("chroot", "docs")
"""What of the repository goes in; manual pages go to a place of their own."""

LEFT_OUT = ("chroot/debian", "__pycache__")
"""Folders of these that are of no use without the repository."""

LINK = re.compile(r"!?\[((?:[^][]|\[[^][]*\])*)\]\(([^):#]+)(?:#[^)]*)?\)")
"""A link, or a picture, of a page in Markdown, that leads to a file and not to the network. Its
words may have brackets in them."""

Contents = dict[str, Path | bytes | str | None]
"""Name below the archive's folder to the file, the bytes, (a text) where a link leads, or (None) a
folder."""


def contents(root: Path, executable: Path, bill: str, components: Iterable[Component]) -> Contents:
    """Lay out an archive of the repository ``root``."""
    found: Contents = {"bin/sniproxy": executable, "sbom.cdx.json": bill.encode()}
    found.update({f"bin/{name}": "sniproxy" for name in NAMES})
    found.update({page: root / page for page in PAGES})
    moved = {}
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            name = file.relative_to(root).as_posix()
            if is_manual_page(file):
                moved[name] = f"share/man/man{file.suffix[1:]}/{file.name}"
                found[moved[name]] = file
            elif file.is_file() and not any(f"{out}/" in name for out in LEFT_OUT):
                found[name] = file
    for name in [name for name in found if name.endswith(".md")]:
        found[name] = page((root / name).read_text(), name, moved, found).encode()
    found.update({f"licenses/{name}": file for name, file in licences(components).items()})
    return found


def is_manual_page(file: Path) -> bool:
    return len(file.suffix) == 2 and file.suffix[1].isdigit() and file.is_file()


def page(text: str, name: str, moved: Mapping[str, str], found: Iterable[str]) -> str:
    """Give a page of the repository as it is right among what is ``found``: what has ``moved`` is
    named by its new place, and of a link to what is left out the words remain."""
    for old, new in moved.items():
        text = text.replace(old, new)
    paths = [PurePosixPath(one) for one in found]
    there = {str(one) for path in paths for one in (path, *path.parents)}

    def kept(link: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(name).parent / link[2])
        return link[0] if target in there else link[1]

    return LINK.sub(kept, text)


def licences(components: Iterable[Component]) -> dict[str, Path]:
    """Lay out the licences of what is inside, a folder for each work."""
    return {
        f"{component.name.replace(' ', '-')}-{component.version}/{file.name}": file
        for component in components
        if component.inside
        for file in component.files
    }


def tar(folder: str, found: Contents, epoch: int) -> bytes:
    """Give all of it, below ``folder`` (a prefix), as if it were root's and from ``epoch``."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, content in sorted(found.items()):
            if ".." in PurePosixPath(name).parts:
                raise BuildFailure(f"{name} leads out of the archive")
            entry = tarfile.TarInfo(f"{folder}{name}")
            entry.mtime = epoch
            if isinstance(content, str):
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, content, 0o777
            elif content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            if not isinstance(content, Path | bytes):
                made.addfile(entry)
                continue
            runs = isinstance(content, Path) and content.stat().st_mode & 0o111
            entry.mode = 0o755 if runs else 0o644
            data = content.read_bytes() if isinstance(content, Path) else content
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return whole.getvalue()


def gzipped(data: bytes) -> bytes:
    """Compress, without a time or a name."""
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as stream:
        stream.write(data)
    return packed.getvalue()


def write(archive: Path, folder: str, found: Contents, epoch: int) -> None:
    """Write ``archive``, everything below ``folder``."""
    put(archive, lzma.compress(tar(f"{folder}/", found, epoch), preset=6))


def put(file: Path, data: bytes) -> None:
    """Write a file as a whole, or not at all."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_bytes(data)
    fresh.replace(file)
