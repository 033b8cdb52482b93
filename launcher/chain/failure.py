"""The one error of the build: what was expected, what was found, and what to do."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class BuildFailure(Exception):  # noqa: N818 - a failure, not a fault of this code
    """The build can't go on; the text is for the person who started it."""


def told(program: str, make: Callable[[], Iterable[Path]]) -> int:
    """Make files, and list them with their sizes, or say what prevents it; give the exit status of
    the ``program`` that does so."""
    try:
        files = make()
    except BuildFailure as failure:
        print(f"{program}: {failure}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file.stat().st_size:>12,} {file}")
    return 0
