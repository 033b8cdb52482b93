"""The command line of a tool: argparse, but for what it prints and where.

How argparse meets an output that is closed or full depends on Python's release: a traceback, a
usage error on standard output, an exit status of its own. Here that is ``output``'s.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from sniproxy.tools.output import complain, escaped, tell
from sniproxy.version import version_line

USAGE_ERROR = 2


class CommandLine(argparse.ArgumentParser):
    """A parser with ``--help`` and ``--version``.

    ``failure`` is the exit status where nobody could read what was asked for.
    """

    def __init__(self, command: str, failure: int, **words: Any) -> None:
        super().__init__(prog=command, add_help=False, **words)
        version = version_line(command) + "\n"
        for names, text, description in (
            (("--help", "-h"), self.format_help, "show this text and exit"),
            (("--version",), lambda: version, "show the version and flavour and exit"),
        ):
            self.add_argument(*names, action=_Answer, text=text, failure=failure, help=description)

    def error(self, message: str) -> NoReturn:
        complain(f"{self.format_usage()}{self.prog}: error: {escaped(message)}")
        sys.exit(USAGE_ERROR)


class _Answer(argparse.Action):
    """Print a text and exit."""

    def __init__(
        self, option_strings: list[str], text: Callable[[], str], failure: int, **rest: Any
    ) -> None:
        super().__init__(option_strings, nargs=0, **rest | {"dest": argparse.SUPPRESS})
        self._text = text
        self._failure = failure

    def __call__(self, *_: object, **__: object) -> NoReturn:
        sys.exit(0 if tell(self._text()) else self._failure)
