"""Image: the executable as an image for containers, in one file that podman, containerd and skopeo
take.

An image layout of OCI (image-spec 1.0) in a tar archive: an index, and below it for each
architecture a manifest, a configuration and one layer of files, each named by its SHA-256. Equal
contents give equal bytes.
"""

import hashlib
import json
import struct
import tarfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from . import archive, bill
from .components import Component
from .failure import BuildFailure

MEDIA = "application/vnd.oci.image"

ARCHITECTURES = {62: ("x86_64", "amd64"), 183: ("aarch64", "arm64")}
"""By e_machine of elf(5): the name that uname(2) has for it, and the one that images have."""

USER = "65532:65532"
"""Whom it runs as where nobody says otherwise: a number that no distribution gives to anybody."""

HOSTS, PORT = "/hosts", 8443
"""Where the hosts directory is to be mounted, and the port: one that takes no rights."""

DOCUMENTS = "usr/share/doc/sniproxy"

VERSION = "org.opencontainers.image.version"
_NAME = "io.containerd.image.name"
_TAG = "org.opencontainers.image.ref.name"

Blobs = dict[str, bytes]
"""Digest, as ``sha256:…``, to content."""


@dataclass(frozen=True, slots=True)
class Image:
    """Images of one program: ``index`` is the descriptor of the index that lists them."""

    index: dict[str, Any]
    blobs: Blobs


def machine(executable: Path) -> tuple[str, str]:
    """Say for which machine an executable is, by both names of ``ARCHITECTURES``."""
    with executable.open("rb") as file:
        head = file.read(20)
    if len(head) == 20 and head.startswith(b"\x7fELF\2\1"):
        (number,) = struct.unpack_from("<H", head, 18)
        if number in ARCHITECTURES:
            return ARCHITECTURES[number]
    raise BuildFailure(f"{executable} is no executable for x86_64 or aarch64")


def contents(
    root: Path, executable: Path, version: str, components: Iterable[Component]
) -> archive.Contents:
    """Lay out the files: the executable, its other names, and what one may do with it."""
    works = list(components)
    sha256 = hashlib.sha256(executable.read_bytes()).hexdigest()
    text = bill.bill(executable.name, version, sha256, works)
    found: archive.Contents = {"usr/bin/sniproxy": executable, HOSTS[1:]: None}
    found |= {f"usr/bin/{name}": "sniproxy" for name in archive.NAMES}
    found |= {f"{DOCUMENTS}/LICENSE": root / "LICENSE", f"{DOCUMENTS}/sbom.cdx.json": text.encode()}
    texts = archive.licences(works).items()
    found |= {f"{DOCUMENTS}/licenses/{name}": file for name, file in texts}
    folders = {str(folder) for name in found for folder in PurePosixPath(name).parents}
    return found | dict.fromkeys(folders - {"."})


def image(
    found: archive.Contents, architecture: str, name: str, labels: Mapping[str, str], epoch: int
) -> Image:
    """Make the image of one architecture."""
    blobs: Blobs = {}
    layer = archive.tar("", found, epoch)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    configuration = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": USER,
            "ExposedPorts": {f"{PORT}/tcp": {}},
            "Env": ["PATH=/usr/bin"],
            "Cmd": ["sniproxy-listen", f":{PORT}", "sniproxy"],
            "WorkingDir": HOSTS,
            "Labels": dict(labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created": created, "created_by": "make image"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _blob(blobs, "config.v1+json", _json(configuration)),
        "layers": [_blob(blobs, "layer.v1.tar+gzip", archive.gzipped(layer))],
        "annotations": dict(labels),
    }
    platform = {"architecture": architecture, "os": "linux"}
    entry = _blob(blobs, "manifest.v1+json", _json(manifest)) | {"platform": platform}
    return _index([entry], name, labels[VERSION], blobs)


def join(images: Iterable[Image]) -> Image:
    """Put images of several architectures into one."""
    parts = list(images)
    blobs: Blobs = {}
    entries = []
    for part in parts:
        entries += json.loads(part.blobs[part.index["digest"]])["manifests"]
        blobs |= part.blobs
        del blobs[part.index["digest"]]
    names = {json.dumps(part.index["annotations"], sort_keys=True) for part in parts}
    architectures = [entry["platform"]["architecture"] for entry in entries]
    if len(names) != 1 or len({*architectures}) != len(architectures):
        raise BuildFailure(f"not one image each of several architectures: {names} {architectures}")
    entries.sort(key=lambda entry: str(entry["platform"]["architecture"]))
    annotations = parts[0].index["annotations"]
    return _index(entries, annotations[_NAME].partition(":")[0], annotations[_TAG], blobs)


def _index(entries: list[dict[str, Any]], name: str, tag: str, blobs: Blobs) -> Image:
    index = {"schemaVersion": 2, "mediaType": f"{MEDIA}.index.v1+json", "manifests": entries}
    names = {"annotations": {_NAME: f"{name}:{tag}", _TAG: tag}}
    return Image(_blob(blobs, "index.v1+json", _json(index)) | names, blobs)


def write(file: Path, image: Image, epoch: int) -> None:
    """Write the archive."""
    layout: archive.Contents = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"})}
    layout["index.json"] = _json({"schemaVersion": 2, "manifests": [image.index]})
    for digest, content in image.blobs.items():
        layout[f"blobs/{digest.replace(':', '/')}"] = content
    archive.put(file, archive.tar("", layout, epoch))


def read(file: Path) -> Image:
    """Read what ``write`` has written. Raises ``BuildFailure``."""
    blobs: Blobs = {}
    index: dict[str, Any] | None = None
    with tarfile.open(file) as tar:
        for entry in tar:
            if not (entry.isfile() and (stream := tar.extractfile(entry))):
                continue
            content = stream.read()
            if entry.name == "index.json":
                (index,) = json.loads(content)["manifests"]
            elif entry.name.startswith("blobs/"):
                blobs[_digest(content)] = content
    if index is None or index["digest"] not in blobs:
        raise BuildFailure(f"{file} is no image that was made here")
    return Image(index, blobs)


def _blob(blobs: Blobs, kind: str, content: bytes) -> dict[str, Any]:
    """Add a blob; give its descriptor."""
    digest = _digest(content)
    blobs[digest] = content
    return {"mediaType": f"{MEDIA}.{kind}", "digest": digest, "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
