"""Archive: what somebody without a package of their distribution downloads, as one ``.tar.xz``.

The executable under all of its names, the manual pages, everything that deploys it, and the
licences of what is inside. Equal contents give equal bytes.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from .components import Component
from .failure import BuildFailure

NAMES = ("sniproxy-hostname", "sniproxy-check", "sniproxy-listen")
"""The commands besides ``sniproxy``, which are links to it."""

PAGES = ("README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE")
FOLDERS = ("chroot", "docs")
"""What of the repository goes in as it is; manual pages go to a place of their own."""

Contents = dict[str, Path | bytes | str]
"""Name below the archive's folder to the file, the bytes, or (a text) where a link leads."""


def contents(root: Path, executable: Path, bill: str, components: Iterable[Component]) -> Contents:
    """Lay out an archive of the repository ``root``."""
    found: Contents = {"bin/sniproxy": executable, "sbom.cdx.json": bill.encode()}
    found.update({f"bin/{name}": "sniproxy" for name in NAMES})
    found.update({page: root / page for page in PAGES})
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            if is_manual_page(file):
                found[f"share/man/man{file.suffix[1:]}/{file.name}"] = file
            elif file.is_file() and "__pycache__" not in file.parts:
                found[file.relative_to(root).as_posix()] = file
    for component in components:
        if component.inside:
            found.update(_licences(component))
    return found


def is_manual_page(file: Path) -> bool:
    return len(file.suffix) == 2 and file.suffix[1].isdigit() and file.is_file()


def _licences(component: Component) -> Contents:
    folder = f"licenses/{component.name.replace(' ', '-')}-{component.version}"
    return {f"{folder}/{file.name}": file for file in component.files}


def write(archive: Path, folder: str, found: Mapping[str, Path | bytes | str], epoch: int) -> None:
    """Write ``archive``, everything below ``folder``, as if all of it were from ``epoch``."""
    fresh = archive.with_name(f".{archive.name}.new")
    with tarfile.open(fresh, "w:xz", preset=6, format=tarfile.PAX_FORMAT) as tar:
        for name, content in sorted(found.items()):
            if ".." in PurePosixPath(name).parts:
                raise BuildFailure(f"{name} leads out of the archive")
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.mtime = epoch
            if isinstance(content, str):
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, content, 0o777
                tar.addfile(entry)
                continue
            runs = isinstance(content, Path) and content.stat().st_mode & 0o111
            entry.mode = 0o755 if runs else 0o644
            data = content.read_bytes() if isinstance(content, Path) else content
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    fresh.replace(archive)


def checksums(files: Iterable[Path]) -> str:
    """Write what ``sha256sum --check`` reads."""
    lines = []
    for file in sorted(files):
        with file.open("rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {file.name}\n")
    return "".join(lines)
