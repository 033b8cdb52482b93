"""Unicode's own conformance data, IdnaTestV2.txt, through ``to_ascii``.

The file is not ours to copy; Debian's librust-idna-dev brings one, cargo's registry maybe another.
Which of its status codes make a name invalid follows from our choice of flags:

- V2, V3 do not count (CheckHyphens is off), U1 neither (UseSTD3ASCIIRules is off). What they would
  refuse, the grammar of ``parser.host_name`` judges, which is asked for here as well.
- A4_1, A4_2 do not count (VerifyDnsLength): we have limits of our own on names and labels, and
  allow one dot at the end, which is removed.
- All others do: P (mapping, Punycode), V (validity), A3, B (CheckBidi), C (CheckJoiners).

A later version of Unicode allows characters that the file's version forbids, and idna has newer
tables: a name that the file refuses for that alone may be valid by now.
"""

import pathlib
import re
from collections.abc import Iterator

import idna.uts46data
import pytest

from sniproxy.parser.host_name import canonical
from sniproxy.tools.hostname import MAX_LABEL, InvalidNameError, to_ascii

PLACES = [
    (pathlib.Path("/usr/share/cargo/registry"), "idna-*/tests/IdnaTestV2.txt"),
    (pathlib.Path.home() / ".cargo/registry/src", "*/idna-*/tests/IdnaTestV2.txt"),
]
FILES = sorted(path for folder, pattern in PLACES for path in folder.glob(pattern))

DO_NOT_COUNT = {"V2", "V3", "U1", "A4_1", "A4_2"}


def forbidden_character(version: tuple[int, ...]) -> set[str]:
    """Give the codes of a character that the tables do not allow; 15.1 has them numbered anew."""
    return {"V7"} if version >= (15, 1) else {"P1", "V6"}


NEW_RULES = {"xn--xn--a--gua.pt"}
"""Valid by older files without CheckHyphens, but since Unicode 15.1 "If CheckHyphens is false, the
label must not begin with xn--" (UTS #46 section 4.1)."""

MOST_CHANGED = 0.03
"""Part of the names that newer tables may judge otherwise: with more, something else is wrong."""


def unescaped(field: str) -> str:
    if field == '""':
        return ""
    pattern = r"\\u([0-9A-Fa-f]{4})|\\x\{([0-9A-Fa-f]+)\}"
    return re.sub(pattern, lambda match: chr(int(match[1] or match[2], 16)), field)


def rows(path: pathlib.Path) -> Iterator[tuple[str, str, set[str]]]:
    """Give the source, the ASCII form by non-transitional processing, and its status codes."""
    for line in path.read_text("utf-8").splitlines():
        fields = [field.strip() for field in line.split("#")[0].split(";")]
        if len(fields) < 5:
            continue
        source = unescaped(fields[0])
        shown = unescaped(fields[1]) if fields[1] else source
        ascii_form = unescaped(fields[3]) if fields[3] else shown
        yield source, ascii_form, set(re.findall(r"\w+", fields[4] or fields[2]))


def version_of(path: pathlib.Path) -> tuple[int, ...]:
    found = re.search(r"^# Version: ([\d.]+)", path.read_text("utf-8"), re.MULTILINE)
    assert found
    return numbers(found[1])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def expected(ascii_form: str, codes: set[str]) -> str | None:
    """Give the name that must come out, or None where it must be refused."""
    name = ascii_form.removesuffix(".")
    if codes - DO_NOT_COUNT or canonical(name.encode()) != name:
        return None
    return name if all(len(label) <= MAX_LABEL for label in name.split(".")) else None


@pytest.mark.parametrize("path", FILES or [None], ids=lambda path: path and path.parts[-3])
def test_conformance(path: pathlib.Path | None) -> None:
    if path is None:
        pytest.skip("IdnaTestV2.txt is missing: install librust-idna-dev")
    tables = numbers(idna.uts46data.__version__)
    version = version_of(path)
    count = changed = valid = 0
    for source, ascii_form, codes in rows(path):
        wanted = expected(ascii_form, codes)
        try:
            result = to_ascii(source)
        except InvalidNameError:
            result = None
        count += 1
        valid += result is not None
        if result != wanted:
            reasons = codes - DO_NOT_COUNT
            if tables > version and reasons and reasons <= forbidden_character(version):
                changed += 1
            else:
                assert source in NEW_RULES, (ascii(source), codes, result)
    assert count > 5000
    assert valid > 500
    assert changed <= MOST_CHANGED * count
