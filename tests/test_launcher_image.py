"""The image: it is what OCI's image-spec calls a layout, and equal files give equal bytes."""

import gzip
import hashlib
import io
import json
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from launcher.chain import archive, image
from launcher.chain.components import Component
from launcher.chain.failure import BuildFailure

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 1_600_000_000
MACHINES = {"x86_64": 62, "aarch64": 183}
LABELS = {image.VERSION: "1.0", "org.opencontainers.image.title": "sniproxy"}


def program(folder: Path, number: int) -> Path:
    """Give a file with the header of an executable for a machine."""
    file = folder / str(number) / "sniproxy"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x7fELF\2\1".ljust(16, b"\0") + struct.pack("<HH", 3, number) + b"code")
    file.chmod(0o755)
    return file


def made(folder: Path, machine: str) -> Path:
    executable = program(folder, MACHINES[machine])
    works = [Component("idna", "3.20", "BSD-3-Clause", "pkg:pypi/idna", "", (ROOT / "LICENSE",))]
    found = image.contents(ROOT, executable, "1.0", works)
    _, architecture = image.machine(executable)
    file = folder / f"sniproxy-1.0-{machine}.oci.tar"
    whole = image.image(found, architecture, "localhost/sniproxy", LABELS, EPOCH)
    image.write(file, whole, EPOCH)
    return file


@pytest.fixture
def layout(tmp_path: Path) -> dict[str, bytes]:
    """Join the images of two machines; give the files of the archive."""
    parts = [image.read(made(tmp_path, machine)) for machine in MACHINES]
    image.write(tmp_path / "joined.oci.tar", image.join(parts), EPOCH)
    with tarfile.open(tmp_path / "joined.oci.tar") as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def blob(layout: dict[str, bytes], descriptor: dict[str, Any], kind: str) -> bytes:
    """Follow a descriptor, of which all is right."""
    assert descriptor["mediaType"] == f"application/vnd.oci.image.{kind}"
    algorithm, digest = descriptor["digest"].split(":")
    content = layout.pop(f"blobs/{algorithm}/{digest}")
    assert (hashlib.new(algorithm, content).hexdigest(), len(content)) == (
        digest,
        descriptor["size"],
    )
    return content


def test_the_layout_is_as_the_specification_says(layout: dict[str, bytes]) -> None:
    assert json.loads(layout.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(layout.pop("index.json"))
    assert index["schemaVersion"] == 2
    (descriptor,) = index["manifests"]
    assert descriptor["annotations"] == {
        "io.containerd.image.name": "localhost/sniproxy:1.0",
        "org.opencontainers.image.ref.name": "1.0",
    }
    listed = json.loads(blob(layout, descriptor, "index.v1+json"))
    assert listed["schemaVersion"] == 2
    architectures = []
    for entry in listed["manifests"]:
        manifest = json.loads(blob(layout, entry, "manifest.v1+json"))
        assert manifest["schemaVersion"] == 2
        config = json.loads(blob(layout, manifest["config"], "config.v1+json"))
        (descriptor,) = manifest["layers"]
        layer = gzip.decompress(blob(layout, descriptor, "layer.v1.tar+gzip"))
        assert config["rootfs"] == {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
        }
        platform = {name: config[name] for name in ("architecture", "os")}
        assert platform == entry["platform"]
        assert (config["created"], config["os"]) == ("2020-09-13T12:26:40Z", "linux")
        assert config["config"]["Labels"] == manifest["annotations"] == LABELS
        architectures.append(config["architecture"])
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            machine = {"amd64": 62, "arm64": 183}[config["architecture"]]
            program = tar.extractfile("usr/bin/sniproxy")
            assert program is not None
            assert program.read()[18] == machine
    assert architectures == ["amd64", "arm64"]
    assert layout == {}  # nothing that nobody names


def test_its_files(tmp_path: Path) -> None:
    whole = image.read(made(tmp_path, "x86_64"))
    (layer,) = [content for content in whole.blobs.values() if content.startswith(b"\x1f\x8b")]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as tar:
        entries = {entry.name: entry for entry in tar}
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, EPOCH)}
    links = {name: entry.linkname for name, entry in entries.items() if entry.issym()}
    assert links == {f"usr/bin/{name}": "sniproxy" for name in archive.NAMES}
    rest = {name: entry.mode for name, entry in entries.items() if name not in links}
    documents = "usr/share/doc/sniproxy"
    texts = ("LICENSE", "sbom.cdx.json", "licenses/idna-3.20/LICENSE")
    assert {name: mode for name, mode in rest.items() if entries[name].isfile()} == {
        "usr/bin/sniproxy": 0o755,
        **{f"{documents}/{name}": 0o644 for name in texts},
    }
    folders = {name: mode for name, mode in rest.items() if entries[name].isdir()}
    assert {"hosts", "usr", "usr/bin", documents} <= folders.keys()
    assert set(folders.values()) == {0o755}


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first, second = (made(folder, "x86_64") for folder in (tmp_path, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()
    # Not only by being made in the same second.
    assert archive.gzipped(b"")[:8] == b"\x1f\x8b\x08\0\0\0\0\0"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"#!/bin/sh\n: a script, of some length",
        b"\x7fELF\1\1".ljust(18, b"\0") + b"\x3e\0",  # 32 bits
        b"\x7fELF\2\2".ljust(18, b"\0") + b"\0\x3e",  # big-endian
        b"\x7fELF\2\1".ljust(18, b"\0") + b"\x16\0",  # s390x
    ],
)
def test_what_is_for_no_machine_of_ours_is_refused(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "program").write_bytes(head)
    with pytest.raises(BuildFailure, match="no executable for x86_64 or aarch64"):
        image.machine(tmp_path / "program")


def test_two_of_one_architecture_are_not_joined(tmp_path: Path) -> None:
    part = image.read(made(tmp_path, "x86_64"))
    with pytest.raises(BuildFailure, match="several architectures"):
        image.join([part, part])


def test_another_archive_is_not_read(tmp_path: Path) -> None:
    archive.put(tmp_path / "x.tar", archive.tar("", {"a": b"b"}, 0))
    with pytest.raises(BuildFailure, match="no image that was made here"):
        image.read(tmp_path / "x.tar")


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is missing: install skopeo")
def test_skopeo_takes_it_all(layout: dict[str, bytes], tmp_path: Path) -> None:
    """It verifies digests, and is what hands the image out."""
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests"]
    source = f"oci-archive:{tmp_path}/joined.oci.tar"
    subprocess.run([*copy, source, f"oci:{tmp_path}/copy:1.0"], check=True, capture_output=True)
    blobs = {path.name: path.read_bytes() for path in (tmp_path / "copy/blobs/sha256").iterdir()}
    assert blobs == {
        name.rpartition("/")[2]: content
        for name, content in layout.items()
        if name.startswith("blobs/")
    }
