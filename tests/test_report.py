"""What is written of findings."""

import json
from collections.abc import Iterator

from sniproxy.tools.report import Finding, as_json, brief, table

FINDINGS = [
    Finding("a.example", accepts=True, backend_user="caddy", notes=["slow"]),
    Finding("README", is_host=False, notes=["is no host"]),
    Finding("b\x1b", problems=["one", "two"]),
    Finding("c" * 255, accepts=True, proxy_header="v2"),
]


def test_the_table() -> None:
    names = [one.name for one in FINDINGS[:3]]
    assert list(table(FINDINGS, names, "/")) == [
        "ok   a.example  accepts as caddy, PROXY header none; note: slow\n",
        "note README     is no host\n",
        "FAIL b\\x1b      one; two\n",
        f"ok   {'c' * 255}  accepts as a busy backend, PROXY header v2\n",
        "3 hosts, 2 well, 1 not\n",
    ]
    assert list(table([], [], "/srv/\n")) == ["0 hosts, 0 well, 0 not, seen inside /srv/\\x0a\n"]


def test_a_long_name_does_not_widen_every_line() -> None:
    """Or a user's one entry would make an administrator's report four times as long."""
    (line, *_) = table([Finding("a")], ["a", "\x1b" * 255], "/")
    assert len(line) < 80


def test_json() -> None:
    objects = json.loads("".join(as_json(FINDINGS)))
    assert [one["name"] for one in objects] == ["a.example", "README", "b\\x1b", "c" * 255]
    assert objects[0] == {
        "name": "a.example",
        "is_host": True,
        "kind": None,
        "asked_for": False,
        "shadows": None,
        "shadowed_by": [],
        "accepts": True,
        "backend_user": "caddy",
        "backend_pid": None,
        "proxy_header": "none",
        "acme_socket": False,
        "waits_for_backend": False,
        "problems": [],
        "notes": ["slow"],
    }
    assert json.loads("".join(as_json([]))) == []


def test_each_is_written_before_the_next_is_looked_at() -> None:
    def endless() -> Iterator[Finding]:
        yield FINDINGS[0]
        raise KeyboardInterrupt

    for lines in (table(endless(), [], "/"), as_json(endless())):
        assert "a.example" in next(lines)


def test_long_paths_are_cut() -> None:
    assert brief("a/b") == "a/b"
    assert brief("a" * 200) == "a" * 200
    assert brief("a" + "b" * 10_000 + "c") == f"a{'b' * 99}…{'b' * 99}c"
    assert len(brief("\x1b" * 10_000)) < 1000
