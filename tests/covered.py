"""How much of a module its own tests run: ``--covered`` asks for it at the end of each file.

What others' tests run of it does not count: then one file shows whether a module still does what
it should. Lines count that are inside of functions, since to import a module runs its others.
Processes that a test forks count, as far as they may write down what they have run; programs that
it starts only for some modules.
"""

import ast
import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

TESTS = pathlib.Path(__file__).parent
PACKAGE = TESTS.parent / "sniproxy"

SHARE = 0.8
"""Of a module's lines, at least."""

_OF_CLIENTS = "the rest is for tests that have clients: of relay, of shares, and from outside"
_OF_PROCESSES = "the rest is what real processes do, in tests/end_to_end and tests/faults"
LESS = {
    "commands.py": (0.6, "its tests start nothing that serves"),
    "dataplane/arrival.py": (0.75, _OF_CLIENTS),
    "dataplane/connections.py": (0.75, _OF_CLIENTS),
    "dataplane/contender.py": (0.7, _OF_CLIENTS),
    "dataplane/farewell.py": (0.65, _OF_CLIENTS),
    "dataplane/isolated.py": (0.7, _OF_PROCESSES),
    "dataplane/listener.py": (0.7, _OF_CLIENTS),
    "dataplane/pipes.py": (0.7, _OF_CLIENTS),
    "dataplane/poller.py": (0.55, _OF_CLIENTS),
    "dataplane/watchdog.py": (0.2, "no trace function is told of its thread, where nearly all is"),
    "process/resolvers.py": (0.7, _OF_PROCESSES),
    "process/server.py": (0.7, _OF_PROCESSES),
    "process/service.py": (0.75, _OF_PROCESSES),
    "process/supervisor.py": (0.4, _OF_PROCESSES),
    "process/warden.py": (0.5, _OF_PROCESSES),
    "status/page.py": (0.0, "what it has of functions makes a constant when it is imported"),
    "tools/capabilities.py": (0.65, "the rest is the executable's, which has no ctypes"),
    "tools/knock.py": (0.5, "the rest is for transcripts of sniproxy-check, which it knocks for"),
}
"""Modules of which less has to be run, and why."""

ELSEWHERE = {
    "dataplane/look.py": "test_listing.py",  # the other way to see what is open
    "version.py": "test_commands.py",
}
"""Modules whose tests are called by another name, and how."""


BY_PROGRAMS = {
    "commands.py",
    "process/signals.py",
    "tools/hostname.py",
    "tools/listen.py",
    "tools/look.py",
    "tools/output.py",
    "tools/screen.py",
    "tools/watch.py",
}
"""Modules whose tests start programs, which are measured as well: each takes longer for it."""

_OF_PROGRAMS = """
[run]
core = ctrace
parallel = true
data_file = {file}
include = {module}
disable_warnings = no-data-collected
patch = _exit
"""


def file_of_tests(module: pathlib.Path) -> pathlib.Path:
    """Say in which file the tests of a module are."""
    return TESTS / ELSEWHERE.get(_name(module), f"test_{module.name}")


def _name(module: pathlib.Path) -> str:
    return str(module.relative_to(PACKAGE))


def modules() -> Iterator[pathlib.Path]:
    """Give the modules that have anything to test."""
    return (path for path in PACKAGE.rglob("*.py") if lines_of_functions(path))


def lines_of_functions(module: pathlib.Path) -> set[int]:
    """Number the lines that functions have below their heads."""
    return {
        line
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.FunctionDef)
        for line in range(node.body[0].lineno, (node.end_lineno or 0) + 1)
    }


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Do something that takes the trace function for itself, or could break it."""
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)


@contextlib.contextmanager
def measured(tested: Sequence[pathlib.Path]) -> Iterator[None]:
    """Fail at the end where too little of these modules was run meanwhile."""
    import coverage  # only who asks needs it

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        os.chmod(folder, 0o777)  # a process that is somebody else's by then writes there, too
        run = coverage.Coverage(
            f"{folder}/lines", data_suffix=True, config_file=False, include=list(map(str, tested))
        )
        run.set_option("run:core", "ctrace")
        run.set_option("run:disable_warnings", ["no-data-collected"])

        def saving(end: Callable[..., None]) -> Callable[..., None]:
            def save_and_end(*words: Any) -> None:
                with contextlib.suppress(Exception):  # as in a root directory of its own
                    run.save()
                end(*words)

            return save_and_end

        for name in ("_exit", "execvp"):
            patch.setattr(os, name, saving(getattr(os, name)))
        for module in tested:
            if _name(module) in BY_PROGRAMS:
                with open(f"{folder}/settings", "w") as settings:
                    settings.write(_OF_PROGRAMS.format(file=f"{folder}/lines", module=module))
                patch.setenv("COVERAGE_PROCESS_START", f"{folder}/settings")
        run.start()
        try:
            yield
        finally:
            run.stop()
            run.save()
        run.combine()
        for module in tested:
            _, statements, _, missing, _ = run.analysis2(str(module))
            inside = lines_of_functions(module)
            lines, missed = inside.intersection(statements), inside.intersection(missing)
            share = 1 - len(missed) / len(lines)
            name = _name(module)
            wanted, _ = LESS.get(name, (SHARE, ""))
            assert share >= wanted, (
                f"its own tests run {share:.0%} of sniproxy/{name}, not {wanted:.0%}: "
                f"{sorted(missed)}"
            )
