"""The bill of materials, against the schema of its format."""

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from launcher.chain.bill import bill
from launcher.chain.components import Component

PYTHON = Component("CPython", "3.11.9", "Python-2.0", "pkg:generic/python@3.11.9", "a" * 64, ())
CRATE = Component("libc", "0.2", "MIT OR Apache-2.0", "pkg:cargo/libc@0.2", "b" * 64, ())
LIBRARY = Component("C library", "2.36", "LGPL-2.1-or-later", "pkg:deb/debian/glibc@2", "", ())
TOOL = Component("syn", "1.0", "MIT", "pkg:cargo/syn@1.0", "c" * 64, (), inside=False)
ALL = [PYTHON, CRATE, LIBRARY, TOOL]


def test_it_is_valid() -> None:
    errors = JsonStrictValidator(SchemaVersion.V1_5).validate_str(bill("x", "1.0", "d" * 64, ALL))
    assert errors is None


def test_a_wrong_one_would_be_found() -> None:
    text = bill("x", "1.0", "no digest", ALL)
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is not None


def test_what_is_inside_and_what_only_builds_are_told_apart() -> None:
    document = json.loads(bill("sniproxy", "1.0", "d" * 64, ALL))
    scopes = {entry["name"]: entry["scope"] for entry in document["components"]}
    assert scopes == {
        "CPython": "required",
        "libc": "required",
        "C library": "required",
        "syn": "excluded",
    }
    (dependency,) = document["dependencies"]
    assert dependency["ref"] == document["metadata"]["component"]["bom-ref"]
    assert dependency["dependsOn"] == [one.purl for one in (PYTHON, CRATE, LIBRARY)]


def test_equal_contents_give_equal_bills() -> None:
    assert bill("x", "1.0", "d" * 64, ALL) == bill("x", "1.0", "d" * 64, iter(ALL))
