"""Which works of others are inside, and their licences."""

import json
from pathlib import Path

import pytest

from launcher.chain import components
from launcher.chain.failure import BuildFailure


def package(name: str, kind: str = "lib") -> dict[str, object]:
    return {"id": name, "targets": [{"kind": [kind]}]}


def node(name: str, **needs: str | None) -> dict[str, object]:
    deps = [{"pkg": pkg, "dep_kinds": [{"kind": kind}]} for pkg, kind in needs.items()]
    return {"id": name, "deps": deps}


def test_only_ordinary_dependencies_are_linked() -> None:
    described = {
        "packages": [
            package("root", "bin"),
            package("inner"),
            package("deep"),
            package("builder"),
            package("macro", "proc-macro"),
            package("for_macro"),
            package("for_tests"),
        ],
        "resolve": {
            "root": "root",
            "nodes": [
                node("root", inner=None, builder="build", macro=None, for_tests="dev"),
                node("inner", deep=None),
                node("deep"),
                node("builder"),
                node("macro", for_macro=None),
                node("for_macro"),
                node("for_tests"),
            ],
        },
    }
    assert components.linked_crates(described) == {"root", "inner", "deep"}


def test_the_texts_of_licences_are_found(tmp_path: Path) -> None:
    names = ("LICENSE-MIT", "COPYING", "license.md", "NOTICE", "UNLICENSE", "LICENCE.txt")
    for name in (*names, "README.md", "lib.rs"):
        (tmp_path / name).touch()
    assert {file.name for file in components.licence_files(tmp_path)} == set(names)


def source(at: Path, name: str) -> tuple[Path, Path]:
    """Lay out what the components are read from: a source, and where it came from."""
    tree, origin = at / "source", at / "source.json"
    for file, text in {
        "Include/patchlevel.h": '#define PY_VERSION   "3.11.2"\n',
        "LICENSE": "PSF",
        "Doc/license.rst": "more",
    }.items():
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text(text)
    origin.write_text(json.dumps({"name": name, "version": "3.11.2-6+deb12u8", "sha256": "a" * 64}))
    return tree, origin


@pytest.mark.parametrize(
    ("name", "purl"),
    [
        ("python3.11_3.11.2.dsc", "pkg:deb/debian/python3.11@3.11.2-6+deb12u8?arch=source"),
        ("Python-3.11.2.tar.xz", "pkg:generic/python@3.11.2"),
    ],
)
def test_python_is_named_by_where_it_came_from(tmp_path: Path, name: str, purl: str) -> None:
    tree, origin = source(tmp_path, name)
    python = components.interpreter(tree, json.loads(origin.read_text()))
    assert (python.purl, python.sha256) == (purl, "a" * 64)


def test_a_licence_that_is_missing_stops_the_build(tmp_path: Path) -> None:
    with pytest.raises(BuildFailure, match="the licence is not on this machine"):
        components.existing("the licence", [tmp_path / "copyright"], [])
    (tmp_path / "copyright").touch()
    one = components.existing("it", [tmp_path / "no"], [tmp_path / "copyright"])
    assert one == (tmp_path / "copyright",)
