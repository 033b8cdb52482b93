"""Documents lead to each other: every link, anchor and path that is named in words is there."""

import functools
import pathlib
import re
from collections import Counter
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
MANUAL = sorted(DOCS.rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / ".github").rglob("*.md")), *MANUAL]

CODE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^][]|\[[^][]*\])*\]\(([^)\s]+)\)")
NAMED = re.compile(r"\bdocs/[\w/.-]+\.(?:md|json|svg|png|[18])\b")
SHIPPED = re.compile(r"/usr/share/doc/sniproxy/([\w/.@-]+\w)")

ELSEWHERE = {"test_launcher_archive.py", "compared.md"}
"""They name documents of trees of their own, and of other programs."""

LONGEST = 200
"""Lines of a page that says how to do something, or what is so: one sitting."""


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def words() -> Iterator[pathlib.Path]:
    """Find all texts in which a path may be named."""
    for folder in ("bench", "chroot", "demo", "docs", "launcher", "sniproxy", "tests", ".github"):
        for path in (ROOT / folder).rglob("*"):
            known = path.suffix in (".py", ".md", ".yml", ".rs", ".toml", ".conf", ".1", ".8", "")
            if path.is_file() and known and path.name not in ELSEWHERE:
                yield path
    yield from (ROOT / one for one in ("Makefile", "pyproject.toml", "setup.py", ".ci/run"))
    yield from ROOT.glob("*.md")


@functools.cache
def anchors(page: pathlib.Path) -> set[str]:
    """Name the headings of a page as GitHub does: the second of a name gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    text = re.sub(
        r"^( *)(```+|~~~+).*?^\1\2 *$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = LINK.sub(lambda link: link[0][1 : link[0].index("](")], heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: pathlib.Path) -> None:
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


def test_every_document_that_is_named_is_there() -> None:
    named = [
        (path, found)
        for path in words()
        for found in NAMED.findall(path.read_text(errors="replace"))
    ]
    assert len(named) > 20
    assert [(name(path), found) for path, found in named if not (ROOT / found).exists()] == []


def test_what_the_package_is_said_to_have_is_in_the_repository() -> None:
    there = {"examples": ROOT / "chroot", "docs": DOCS}
    found = [
        (path, one) for path in words() for one in SHIPPED.findall(path.read_text(errors="replace"))
    ]
    assert len(found) > 10
    for path, one in found:
        folder, _, rest = one.partition("/")
        known = (there[folder] / rest) if folder in there else ROOT / one
        assert folder == "licenses" or known.exists(), (name(path), one)


def test_units_and_manual_pages_lead_to_manual_pages() -> None:
    pages = {(page.stem, page.suffix[1:]) for page in (DOCS / "man").glob("*.[18]")}
    units = [path for path in (ROOT / "chroot").rglob("sniproxy*.*") if path.is_file()]
    named = [
        found
        for unit in units
        if unit.suffix in (".socket", ".service")
        for found in re.findall(
            r"^Documentation=man:(\S+)\((\d)\)$", unit.read_text(), re.MULTILINE
        )
    ]
    assert len(named) >= 4
    for page in (DOCS / "man").glob("*.[18]"):
        named += re.findall(r"^\.Xr (sniproxy\S*) (\d)", page.read_text(), re.MULTILINE)
    assert set(named) <= pages


def test_the_table_of_contents_has_every_page() -> None:
    listed = {
        (DOCS / target.partition("#")[0]).resolve()
        for target in LINK.findall((DOCS / "README.md").read_text())
    }
    files = [path for path in DOCS.rglob("*") if path.suffix in (".md", ".1", ".8")]
    files += DOCS.rglob("*.schema.json")
    assert {name(path) for path in files} - {"docs/README.md"} == {name(path) for path in listed}


def test_pages_to_do_something_by_are_short() -> None:
    for page in MANUAL:
        if page.parent.name != "explanation":
            assert len(page.read_text().splitlines()) <= LONGEST, name(page)


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What one owner's hosts can cost the others", "what-one-owners-hosts-can-cost-the-others"),
        ("A balancer, and who takes its place", "a-balancer-and-who-takes-its-place"),
        ("`--root` of [it](x.md)", "--root-of-it"),
    ],
)
def test_anchors_are_those_of_github(heading: str, anchor: str, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A\n\n```text\n# none\n```\n\n## {heading}\n\n## A\n")
    assert anchors(page) == {"a", "a-1", anchor}


def test_what_is_said_of_others_says_where_it_was_seen() -> None:
    told, _, sources = (DOCS / "compared.md").read_text().partition("## Where it was seen")
    used = set(re.findall(r"\[([A-Z]\d)\]", told))
    assert len(used) > 20
    assert used == set(re.findall(r"\b([A-Z]\d):\s", sources))
    for table in re.findall(r"^\| \| .*\n\|[-|]+\n((?:\|.*\n)+)", told, re.MULTILINE):
        for row in table.splitlines():
            what, _, *others = (cell.strip() for cell in row.strip("|").split(" | "))
            assert len(others) == 9, what
            for cell in others:
                # Debian's packages are their own source.
                assert cell == "–" or "[" in cell or what == "in Debian 12", (what, cell)


def test_what_is_said_of_others_says_of_which_version() -> None:
    _, _, sources = (DOCS / "compared.md").read_text().partition("## Where it was seen")
    _, *parts = re.split(r"\b([A-Z]\d):\s", re.sub(r"\]\(\S+\)", "]", sources))
    for source, text in zip(parts[::2], parts[1::2], strict=True):
        assert re.search(r"\b\d+\.\d+|\bthe\s+same\b|\bno version\b", text), source
