"""Sources: CPython's source, its checksum verified, as an unpacked folder.

On Debian it is the source package of the distribution's own ``python3.11``: it carries the
security fixes, and apt verifies it from the archive's signature down to each file. Elsewhere, or
where wanted, a tarball named by ``PYTHON_SOURCE`` (a path or a URL) must have the SHA-256 that
``PYTHON_SOURCE_SHA256`` says. A mismatch stops the build before anything is unpacked.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from . import commands
from .failure import BuildFailure

SERIES = "3.11"
"""The newest that PyOxidizer's pyo3 0.17 supports."""

PACKAGE = f"python{SERIES}"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHIVES = re.compile(r"/debian(-security)?/?$")
"""How the address of a mirror of Debian's archive ends; other repositories are none of ours."""

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the source came from: its version, and the digest that was verified."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Tarball:
    """A source given by hand: ``location`` is a path or a URL."""

    location: str
    sha256: str


def wanted(environment: Mapping[str, str]) -> Tarball | None:
    """Read which source is wanted: a tarball, or None for Debian's package."""
    location = environment.get("PYTHON_SOURCE", "")
    expected = environment.get("PYTHON_SOURCE_SHA256", "").lower()
    if not location:
        if expected:
            raise BuildFailure("PYTHON_SOURCE_SHA256 is set, and PYTHON_SOURCE is not")
        return None
    if not SHA256.fullmatch(expected):
        raise BuildFailure(
            f"PYTHON_SOURCE is {location}: PYTHON_SOURCE_SHA256 must be its SHA-256, 64 hexadecimal"
            f" digits, and is {expected!r}"
        )
    return Tarball(location, expected)


def unpack_tarball(tarball: Tarball, workshop: Path, tree: Path, log: Path) -> Origin:
    """Fetch, verify and unpack ``tarball`` into the new folder ``tree``."""
    workshop.mkdir(parents=True, exist_ok=True)
    fetched = workshop / "source.tar"
    _fetch(tarball.location, fetched)
    verify(fetched, tarball.sha256, tarball.location)
    _fresh(tree)
    # GNU tar refuses names that lead out of the folder.
    strip = ["--strip-components=1", "--no-same-owner"]
    commands.run(["tar", "-x", "-f", fetched, "-C", tree, *strip], log=log)
    return Origin(Path(tarball.location).name, _version(tree), tarball.sha256)


def verify(file: Path, expected: str, name: str) -> None:
    """Stop the build unless the SHA-256 of ``file``, in hexadecimal, is ``expected``."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise BuildFailure(
            f"{name}: the checksum does not match, nothing of it is used\n"
            f"  expected SHA-256 {expected}\n  found            {found}"
        )


def unpack_debian(workshop: Path, tree: Path, log: Path) -> Origin:
    """Get Debian's source package with an apt set-up of its own below ``workshop``, and unpack it
    into the new folder ``tree``. /etc/apt is read and not touched."""
    apt = _apt_environment(workshop)
    commands.run(["apt-get", "update"], environment=apt, log=log)
    description = commands.output_of(
        ["apt-cache", "showsrc", "--only-source", PACKAGE], environment=apt
    )
    candidates = debian_versions(description)
    if not candidates:
        raise BuildFailure(
            f"This release of Debian has no source package {PACKAGE}. Give a tarball of CPython "
            f"{SERIES}: PYTHON_SOURCE=path-or-URL PYTHON_SOURCE_SHA256=…"
        )
    refused = ""
    for version in candidates:
        download = workshop / "download"
        _fresh(download)
        command = ["apt-get", "source", "--only-source", "--download-only", f"{PACKAGE}={version}"]
        try:
            commands.run(command, folder=download, environment=apt, log=log)
        except BuildFailure as failure:
            # The trap: the index names a version before each mirror has it.
            refused = str(failure)
            continue
        (description_file,) = download.glob("*.dsc")
        shutil.rmtree(tree, ignore_errors=True)
        unpack = ["dpkg-source", "-x", "--no-check", "--no-copy", description_file, tree]
        commands.run(unpack, log=log)
        with description_file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return Origin(description_file.name, version, sha256)
    raise BuildFailure(f"None of {PACKAGE} {', '.join(candidates)} could be had:\n{refused}")


def debian_versions(description: str) -> list[str]:
    """Read the versions out of what ``apt-cache showsrc`` prints, the newest first."""
    versions = re.findall(r"^Version: (\S+)$", description, re.MULTILINE)
    return sorted(set(versions), key=_version_key, reverse=True)


def _version_key(version: str) -> list[tuple[str, int]]:
    # Of one package's versions in one release: runs of digits compare as numbers.
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", version)]


def _apt_environment(workshop: Path) -> dict[str, str]:
    """Write an apt configuration whose lists, cache and sources are our own: deb-src entries for
    the mirrors of Debian that the machine uses. What it trusts stays Debian's signature."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = commands.output_of(["apt-get", "indextargets", "--format", form])
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    entries = source_entries(targets, codename)
    if not entries:
        raise BuildFailure(
            "apt here knows no mirror of Debian's archive: run apt-get update, or give a tarball "
            f"of CPython {SERIES}: PYTHON_SOURCE=path-or-URL PYTHON_SOURCE_SHA256=…"
        )
    for folder in ("lists/partial", "cache/archives/partial"):
        (workshop / folder).mkdir(parents=True, exist_ok=True)
    sources = workshop / "debian.list"
    sources.write_text("".join(f"{entry}\n" for entry in entries))
    configuration = workshop / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::SourceList "{sources}";\n'
        'Dir::Etc::SourceParts "-";\n'
        f'Dir::State::Lists "{workshop / "lists"}";\n'
        f'Dir::Cache "{workshop / "cache"}";\n'
        # The build folder may be closed to the user _apt; signatures are verified all the same.
        'APT::Sandbox::User "root";\n'
        # The trap: a failed download of an index is only a warning otherwise.
        'APT::Update::Error-Mode "any";\n'
        'Acquire::Retries "3";\n'
    )
    return {"APT_CONFIG": str(configuration)}


def source_entries(targets: str, codename: str) -> list[str]:
    """Turn apt's index targets (``address release component`` a line) into deb-src entries."""
    suites = {codename, f"{codename}-updates", f"{codename}-security"}
    entries = []
    for line in targets.splitlines():
        address, release, component = line.split()
        if component == "main" and release in suites and ARCHIVES.search(address):
            entry = f"deb-src [signed-by={KEYRING}] {address} {release} main"
            if entry not in entries:
                entries.append(entry)
    return entries


def write_origin(origin: Origin, file: Path) -> None:
    """Keep ``origin`` for the bill of materials, as JSON."""
    file.write_text(json.dumps(asdict(origin), indent=2) + "\n")


def _fetch(location: str, destination: Path) -> None:
    if "://" not in location:
        try:
            shutil.copyfile(location, destination)
        except OSError as error:
            raise BuildFailure(f"PYTHON_SOURCE {location}: {error.strerror}") from error
        return
    if not location.startswith(("https://", "http://", "file://")):
        raise BuildFailure(f"PYTHON_SOURCE {location}: expected a path, https, http or file")
    try:
        # The scheme was checked above, the content is checked by its digest.
        with (
            urllib.request.urlopen(location, timeout=60) as answer,  # noqa: S310
            destination.open("wb") as file,
        ):
            shutil.copyfileobj(answer, file)
    except OSError as error:
        raise BuildFailure(f"PYTHON_SOURCE {location}: {error}") from error


def _version(tree: Path) -> str:
    header = tree / "Include" / "patchlevel.h"
    try:
        found = re.search(r'^#define PY_VERSION\s+"([^"]+)"', header.read_text(), re.MULTILINE)
    except OSError as error:
        raise BuildFailure(f"PYTHON_SOURCE holds no CPython: {header}: {error.strerror}") from error
    if not found or not found[1].startswith(f"{SERIES}."):
        raise BuildFailure(f"PYTHON_SOURCE must be CPython {SERIES}, found {found and found[1]}")
    return found[1]


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
