"""What an entry is for, and which wins."""

import subprocess
import sys

import pytest

from sniproxy.resolver import naming
from sniproxy.tools.entries import Kind, hosts_by_parent, kind_of, why_never

HASH = naming.hashed("a.example")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.example", Kind.HOST),
        ("a_.example", Kind.HOST),
        ("_.example", Kind.WILDCARD),
        ("_." + "x" * 252, Kind.WILDCARD),
        ("_." + "x" * 253, None),
        ("_default", Kind.DEFAULT),
        ("_nosni", Kind.NO_SERVER_NAME),
        ("_", None),
        ("_.", None),
        ("_._.example", None),
        ("_.Example", None),
        ("_.example.", None),
        ("_a.example", None),
        ("a.example.", None),
        ("*.example", None),
        (HASH, None),
    ],
)
def test_kinds(name: str, kind: Kind | None) -> None:
    assert kind_of(name) is kind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("A.example", "rename it to a.example"),
        ("a.example.", "rename it to a.example"),
        ("*.Example", "rename it to _.example"),
        ("_.Example", "rename it to _.example"),
        ("_a.example", "is no host name"),
        ("_", "is no host name"),
        (HASH, "only the hashed flavour looks it up"),
    ],
)
def test_why_nobody_is_led_there(name: str, words: str) -> None:
    assert words in why_never(name)


def test_the_hashed_flavour() -> None:
    names = {
        HASH: "host",
        naming.hashed("_default"): "default",
        naming.hashed("_nosni"): "nosni",
        "a.example": f"rename it to {HASH}",
        "_default": f"rename it to {naming.hashed('_default')}",
        "*.example": f"rename it to {naming.hashed('_.example')}",
        "_x": "prints the name to use",
    }
    program = (
        "import sys; from sniproxy import flavour; flavour.HASHED = True; "
        "from sniproxy.tools.entries import *; "
        "[print(kind_of(name) or why_never(name)) for name in sys.argv[1:]]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, check=True, text=True
    )
    for line, words in zip(done.stdout.splitlines(), names.values(), strict=True):
        assert line == words or words in line


def test_who_wins_over_a_wildcard() -> None:
    names = ["a.example", "b.example", "x.a.example", "example", "_.example", "_default", "A.b"]
    below = hosts_by_parent(names)
    assert below["example"] == ["a.example", "b.example"]
    assert below["a.example"] == ["x.a.example"]
    assert "b" not in below
