"""A version is said in one place, and wherever else it stands, it is that."""

import pathlib
import re
import tomllib

import sniproxy

ROOT = pathlib.Path(__file__).parent.parent
VERSION = sniproxy.__version__

RELEASES = re.findall(
    r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
)


def test_the_projects_take_it_from_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "sniproxy.__version__"
    crate = tomllib.loads((ROOT / "launcher" / "Cargo.toml").read_text())["package"]
    assert crate["version"] == "0.0.0"  # of no meaning: nobody is told


def test_the_changelog_has_it() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings == ["Unreleased", *(" - ".join(release) for release in RELEASES)]
    assert RELEASES[0][0] == VERSION
    numbers = [[int(part) for part in version.split(".")] for version, _ in RELEASES]
    assert numbers == sorted(numbers, reverse=True)
    dates = [date for _, date in RELEASES]
    assert dates == sorted(dates, reverse=True)


def test_the_first_release_begins_with_what_stays() -> None:
    first = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[-1]
    assert re.findall(r"^### (.*)$", first, re.MULTILINE)[0] == "What stays"
    for promise in ("hosts directory", "Environment", "exit statuses", "keys", "hand-over"):
        assert promise in first.partition("### Added")[0]


def test_documents_name_no_other() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        (path.name, version)
        for path in pages
        for version in re.findall(r"\bsniproxy[-:_](\d+\.\d+\.\d+)\b", path.read_text())
    }
    assert named
    assert {version for _, version in named} == {VERSION}, named
