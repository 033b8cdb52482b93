"""The watch: a screen that shows the newest statement, sorted as the keys say.

It asks, draws and waits in turn; keys and signals are heard wherever it waits, also for an answer.
What was shown last stays while nobody answers. Of the connections no more is kept than what is
shown and one answer.
"""

import itertools
import socket
import time
from collections.abc import Iterable
from typing import NoReturn

from sniproxy.tools.inquiry import Inquiry, InquiryError
from sniproxy.tools.screen import NEXT, PREVIOUS, REDRAW, Ended, Screen
from sniproxy.tools.statement import Document
from sniproxy.tools.tables import (
    BY_AGE,
    BY_OPEN,
    CONNECTIONS,
    HOSTS_WATCHED,
    Row,
    Table,
    cut,
    harmless,
    host_rows,
    totals,
)

_KEYS = "q quit  h hosts  c connections  r reverse  space, b pages  sort by: "

_HEADS = 2
"""Lines between the totals and the table: which part of it is shown, and its head."""


class Watch:
    """A look at the status socket at ``where``, ``interval`` seconds after the last; at hosts or at
    connections, as long as no key says otherwise. Raises AddressError."""

    def __init__(self, where: str, interval: float, *, connections: bool) -> None:
        self._inquiry = Inquiry(where, self._wait)
        self._screen = Screen()
        self._interval = interval
        self._connections = connections
        self._sorted_by = {False: BY_OPEN, True: BY_AGE}
        self._reverse = self._hurry = False
        self._top = self._count = 0
        self._rows: list[Row] = []
        self._before: Document | None = None
        self._now: Document | None = None
        self._trouble = f"asking {harmless(where)}"

    def run(self) -> NoReturn:
        """Go on until it is ended. Raises Ended, or InquiryError where there was no answer yet."""
        with self._screen.shown():
            while True:
                self._draw()
                self._refresh()
                self._draw()
                due = time.monotonic() + self._interval
                while not self._hurry and (left := due - time.monotonic()) > 0:
                    self._wait(None, 0, left)

    def _wait(self, waiting: socket.socket | None, events: int, seconds: float) -> None:
        """Wait for a socket, as an inquiry does, or for a key; act on all keys."""
        until = time.monotonic() + seconds
        ready = False
        while not ready and (left := until - time.monotonic()) > 0:
            ready, keys = self._screen.wait(waiting, events, left)
            for key in keys:
                self._press(key)
            if keys:
                self._draw()
                ready = ready or waiting is None

    def _press(self, key: str) -> None:
        columns = CONNECTIONS if self._connections else HOSTS_WATCHED
        column = next((one for one in columns if one.key == key), None)
        if key == "q":
            raise Ended
        if key in ("h", "c"):
            self._connections = key == "c"
            self._rows, self._count, self._top = [], 0, 0
        elif key == "r":
            self._reverse = not self._reverse
        elif key in (NEXT, PREVIOUS):
            self._top += self._room if key == NEXT else -self._room
        elif column is not None:
            self._sorted_by[self._connections], self._reverse = column, False
            self._top = 0
        elif key != REDRAW:
            return
        # Of the connections, other ones are to be shown.
        self._hurry = self._hurry or key in ("h", "c") or self._connections

    def _refresh(self) -> None:
        """Ask for everything that is to be shown."""
        hurried, self._hurry = self._hurry, False
        connections = self._connections
        rows: list[Row] = []
        now, count = None, 0
        try:
            for page in self._inquiry.pages(connections=connections):
                if self._connections != connections:
                    return
                now = now or page
                if connections:
                    found = page.pop("open_connections")
                    count += len(found)
                    # A page more than is seen, for the key that asks for it.
                    most = max(self._top, 0) + 2 * self._room
                    rows = self._sorted(itertools.chain(rows, found), most)
        except InquiryError as error:
            if self._now is None:
                raise
            self._trouble = str(error)
            return
        if not hurried:
            # Otherwise there would be too little time between the two for a rate.
            self._before = self._now
        self._now, self._trouble = now, ""
        if now is not None and not connections:
            rows = host_rows(now, self._before)
            count = len(rows)
        self._rows, self._count = rows, count

    @property
    def _room(self) -> int:
        """Lines for the table."""
        above = len(totals(self._now, None)) if self._now else 0
        return max(self._screen.size.lines - above - _HEADS - 1, 1)

    def _sorted(self, rows: Iterable[Row], most: int | None = None) -> list[Row]:
        return self._sorted_by[self._connections].first(rows, most, reverse=self._reverse)

    def _draw(self) -> None:
        size = self._screen.size
        columns = CONNECTIONS if self._connections else HOSTS_WATCHED
        self._top = max(min(self._top, self._count - self._room), 0)
        rows = self._sorted(self._rows)[self._top :][: self._room]
        lines = totals(self._now, self._before) if self._now else []
        kind = "connections" if self._connections else "hosts"
        by = self._sorted_by[self._connections].title + (", reversed" if self._reverse else "")
        part = f"{self._top + 1} to {self._top + len(rows)}" if rows else "none"
        lines.append(f"{part} of {self._count} {kind}, sorted by {by}")
        table = Table(columns, rows, size.columns)
        head = len(lines)
        lines += [table.head, *map(table.line, rows)]
        lines = [*lines, *[""] * size.lines][: size.lines - 1]
        keys = _KEYS + ", ".join(f"{column.key} {column.title}" for column in columns)
        lines.append(self._trouble or keys)
        self._screen.draw([cut(line, size.columns) for line in lines], head)
