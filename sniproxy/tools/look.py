"""``sniproxy-status``: a look at what the proxy is doing, once or again and again.

A terminal that is watched is redrawn in place and takes keys (``watch``). Anything else gets one
table, or one document, after the other, piece by piece: open connections are not collected.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sniproxy.tools.command_line import CommandLine
from sniproxy.tools.inquiry import SOCKET, AddressError, Inquiry, InquiryError, patiently
from sniproxy.tools.output import complain, tell
from sniproxy.tools.screen import Ended, is_terminal, size
from sniproxy.tools.statement import Document
from sniproxy.tools.tables import (
    BY_OPEN,
    CONNECTIONS,
    HOSTS,
    HOSTS_WATCHED,
    Row,
    Table,
    cut,
    host_rows,
    totals,
)
from sniproxy.tools.watch import Watch

_INTERVAL = 2.0
"""Seconds between an answer and the next question, where nothing else is said."""

_SHORTEST, _LONGEST = 0.1, 86_400.0

_FAILURE = 1


def _interval(text: str) -> float:
    """Read a number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text!a} is no number from {_SHORTEST:g} to {_LONGEST:g}"
        )
    return seconds


def as_table(
    pages: Iterator[Document], now: Document, before: Document | None, *, watched: bool
) -> Iterator[str]:
    """Write the first statement, ``now``, and the open connections of all ``pages`` if it has any.

    Columns are as wide as the first page wants them.
    """
    found = size()
    width = found.columns if found and found.columns else None
    yield "".join(cut(line, width) + "\n" for line in totals(now, before)) + "\n"
    parts: Iterator[Sequence[Row]]
    if "open_connections" in now:
        table = Table(CONNECTIONS, now["open_connections"], width)
        parts = (page["open_connections"] for page in itertools.chain([now], pages))
    else:
        rows = BY_OPEN.first(host_rows(now, before), None)
        table = Table(HOSTS_WATCHED if watched else HOSTS, rows, width)
        parts = iter([rows])
    yield table.head + "\n"
    for part in parts:
        yield "".join(table.line(row) + "\n" for row in part)


def as_json(pages: Iterator[Document], now: Document) -> Iterator[str]:
    """Write one document on one line, with the open connections of all ``pages`` if it has any."""
    if "open_connections" not in now:
        yield _written(now) + "\n"
        return
    parts = (page["open_connections"] for page in itertools.chain([now], pages))
    rest = {name: value for name, value in now.items() if name != "open_connections"}
    yield _written(rest | {"next": None})[:-1] + ', "open_connections": ['
    separator = ""
    for part in filter(None, parts):
        yield separator + _written(part)[1:-1]
        separator = ", "
    yield "]}\n"


def _written(value: Any) -> str:
    """Write JSON in printable ASCII: a text in it may be anybody's, and a terminal reads it."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def _watch(options: argparse.Namespace) -> int:
    """Show it on the screen until somebody ends that."""
    try:
        Watch(options.socket, options.watch, connections=options.connections).run()
    except Ended as end:
        if end.number:
            # As it would have ended us: who waits for us is to see it.
            os.kill(os.getpid(), end.number)
        return 0 if end.well else _FAILURE


def _tell(options: argparse.Namespace) -> int:
    """Write it once, or again and again."""
    inquiry = Inquiry(options.socket, patiently)
    before = None
    while True:
        pages = inquiry.pages(connections=options.connections)
        begun = False
        try:
            now = next(pages)
            if before is not None and not options.json and not tell("\n"):
                return _FAILURE
            if options.json:
                texts = as_json(pages, now)
            else:
                texts = as_table(pages, now, before, watched=options.watch is not None)
            for text in texts:
                begun = True
                if not tell(text):
                    return _FAILURE
            before = now
        except InquiryError as error:
            # A watch goes on, unless it has never begun; what was left unfinished is no line more.
            if options.watch is None or before is None:
                raise
            complain(f"sniproxy-status: {error}")
            if begun and not tell("\n"):
                return _FAILURE
        if options.watch is None:
            return 0
        time.sleep(options.watch)


def main(arguments: Sequence[str]) -> int:
    parser = CommandLine(
        "sniproxy-status",
        failure=_FAILURE,
        description="Show what sniproxy is doing, from its status socket: totals, hosts, and the "
        "open connections.",
        epilog="Manual: man 8 sniproxy-status. Exit status: 0 if it was shown, 1 if not.",
    )
    parser.add_argument(
        "--socket",
        default=SOCKET,
        metavar="PATH|ADDRESS:PORT",
        help="the status socket (default: %(default)s)",
    )
    parser.add_argument(
        "--connections", action="store_true", help="show the open connections instead of hosts"
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_interval,
        const=_INTERVAL,
        metavar="SECONDS",
        help=f"show it again and again, in a terminal in place (default: {_INTERVAL:g} s between); "
        "keys: see its last line",
    )
    parser.add_argument("--json", action="store_true", help="print the document instead")
    options = parser.parse_args(arguments)
    try:
        if options.watch is not None and not options.json and is_terminal():
            return _watch(options)
        return _tell(options)
    except AddressError as error:
        parser.error(f"--socket {error}")
    except InquiryError as error:
        complain(f"sniproxy-status: {error}")
        return _FAILURE
