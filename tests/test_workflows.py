"""What the workflows repeat of other files agrees with those."""

import pathlib
import re

from launcher.chain import requirements

ROOT = pathlib.Path(__file__).parent.parent
WORKFLOWS = ROOT / ".github" / "workflows"

ESSENTIAL = {"apt", "tar"}
"""Packages that each Debian has."""


def words(path: pathlib.Path) -> set[str]:
    return set(path.read_text().split())


def test_what_the_build_needs_is_installed_for_it() -> None:
    needed = {
        *requirements.TOOLS.values(),
        *requirements.DEBIAN_TOOLS.values(),
        *requirements.FILES.values(),
        *requirements.MODULES.values(),
    }
    needed -= {*ESSENTIAL, requirements.RUST_PACKAGES}
    needed |= set(re.findall(r"\S+-web", requirements.RUST_PACKAGES))
    assert needed <= words(WORKFLOWS / "release.yml")
    # There in brackets, and Rust is not asked for where there is one.
    assert needed <= set(re.findall(r"[\w.-]+", (ROOT / ".ci" / "run").read_text()))


def test_each_advisory_that_is_left_out_has_its_reason() -> None:
    left_out = re.findall(r"--ignore (\S+)", (WORKFLOWS / "audit.yml").read_text())
    security = (ROOT / "docs" / "explanation" / "security.md").read_text()
    explained = re.findall(r"^\| (RUSTSEC-\S+)", security, re.MULTILINE)
    assert left_out
    assert left_out == explained
