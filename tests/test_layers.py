"""Imports run downwards only: what a byte meets knows nothing of what the system meets."""

import ast
import pathlib

import sniproxy

PACKAGE = pathlib.Path(sniproxy.__file__).parent
FLOORS = {
    "parser": {"parser"},
    "resolver": {"resolver", "parser"},
    "log": {"log"},
    "dataplane": {"dataplane", "log", "resolver", "parser"},
    "status": {"status", "dataplane"},
    "process": {"process", "status", "dataplane", "log", "resolver"},
    "tools": {"tools", "resolver", "parser"},
}
"""What each part may import of the others."""

EVERYBODY = {"flavour", "version", "__version__"}


def imported(path: pathlib.Path) -> set[str]:
    """Name the modules that a file imports, for types or inside of functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_run_downwards() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert parts == set(FLOORS)
    for path in PACKAGE.glob("*/*.py"):
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("sniproxy.")}
        assert ours - EVERYBODY <= FLOORS[path.parent.name], path


def test_no_two_modules_import_each_other() -> None:
    modules = {
        ".".join(("sniproxy", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in PACKAGE.glob("*/*.py")
    }
    below: dict[str, set[str]] = {}
    for name, path in modules.items():
        uses = imported(path)
        below[name] = {
            other
            for other in modules
            if other != name and any(use == other or use.startswith(f"{other}.") for use in uses)
        }
    while leaves := {name for name, uses in below.items() if not uses & set(below)}:
        for name in leaves:
            del below[name]
    assert not below, "these import each other"


def test_the_data_plane_has_no_asyncio() -> None:
    for part in ("parser", "resolver", "dataplane"):
        for path in (PACKAGE / part).glob("*.py"):
            assert not {name for name in imported(path) if name.split(".")[0] == "asyncio"}, path


def test_no_module_is_long_and_the_package_is_small() -> None:
    """By lines that have anything in them; some 500 of them for fair shares of descriptors."""
    written = 0
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 500, path
        written += sum(map(bool, lines))
    # 1,250 of them are for isolated look-ups: three kinds of processes, and what they say; 60 for
    # kernels that can't refuse descriptors; 1,400 for all that can be seen of it (the page for
    # people is a third of that), and 900 for the command that shows it in a terminal.
    assert 5000 < written < 13_050
