"""The log: one line an event, in logfmt (``key=value``), to wherever standard error leads.

Writing a line never raises, never blocks and never kills. What does not fit waits in a bounded
backlog; beyond that, lines are dropped and counted. A line that was begun is completed, or ended
where it is, before another one begins.

Warnings and errors are about what somebody did, and who can make one can make thousands a second.
So of those that are the same in all their fields only the first of a period is written at once;
the others are counted (``repeats.py``).
"""

import enum
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from sniproxy.log.repeats import Repeats
from sniproxy.log.sinks import MAX_LINE, Sink

MAX_BACKLOG = 64 * 1024
"""Bytes of lines that wait for a slow reader: as much as a pipe holds itself."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+,\[\]-]+")
_EPOCH = datetime(1970, 1, 1)  # naive on purpose: no zone is ever looked up
_ESCAPED = re.compile(r"[^ !#-\[\]-~]")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Priority(enum.IntEnum):
    """Priorities of syslog(3): those that we use."""

    ERROR = 3
    WARNING = 4
    INFO = 6


class Level(enum.IntEnum):
    """What is logged, each level more than the one before: the values of SNIPROXY_LOG."""

    ERROR = 0
    INFO = 1
    CONNECTIONS = 2


class Clients(enum.Enum):
    """What is told of clients' addresses: the values of SNIPROXY_LOG_CLIENTS. Of a prefix, the
    network that many are in, and no port."""

    FULL = "full"
    PREFIX = "prefix"
    NONE = "none"


def is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Say whether ``fd`` is the stream that JOURNAL_STREAM names (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def field(value: object) -> str:
    """Write a value as one word, where it is not a plain one as a string of JSON (RFC 8259 section
    7) in ASCII: what readers of logfmt take in quotes."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    short = _ESCAPES.get(match[0])
    if short is not None:
        return short
    number = ord(match[0])
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"


class Log:
    """Lines of ``key=value``, filtered by level.

    ``prefixed`` lines begin with ``<N>`` (sd-daemon(3)) and have no time stamp, for the journal
    and for syslog have their own; other lines begin with the time in UTC (RFC 3339) and the level.
    """

    def __init__(
        self,
        sink: Sink,
        level: Level = Level.INFO,
        *,
        prefixed: bool = False,
        clients: Clients = Clients.FULL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.connections = level >= Level.CONNECTIONS
        self.clients = clients
        """What whoever makes a line is to tell of a client's address."""
        self.dropped = 0
        self._sink = sink
        self._level = level
        self._prefixed = prefixed
        self._clock = clock
        self._backlog: deque[bytes] = deque()
        self._waiting = 0  # bytes in the backlog
        self._begun = False  # its first line is the rest of one
        self._owed = b""  # what ends a line that was begun and whose rest was lost
        self._told = 0  # dropped lines of which its first line tells
        self._lost = 0  # and of those of which a line has told
        self._repeats = Repeats()
        self.on_backlog: Callable[[], None] = lambda: None
        """Called for each line that has to wait: ``flush`` wants to be called a little later."""
        self.on_repeats: Callable[[], None] = lambda: None
        """Called at each warning and error: ``report_repeats`` wants to be called a
        ``repeats.PERIOD`` after the first."""

    def error(self, event: str, **fields: object) -> None:
        """Log that the process can't do what it is for, or count it."""
        self._log(Priority.ERROR, event, fields, once=True)

    def warning(self, event: str, *, account: object = None, **fields: object) -> None:
        """Log a fault of a backend or of the system, or count it, on somebody's account if so
        given (``Repeats.first``)."""
        self._log(Priority.WARNING, event, fields, once=True, account=account)

    def report_repeats(self) -> bool:
        """Log how often each warning and error came again, and begin a new period. Never wants to
        be called again: the next one sees to that."""
        for priority, words, count in self._repeats.take():
            self._write(Priority(priority), f"{words} count={count}")
        return False

    def info(self, event: str, **fields: object) -> None:
        if self._level >= Level.INFO:
            self._log(Priority.INFO, event, fields)

    @property
    def lost(self) -> int:
        """How many lines were dropped since the start."""
        return self._lost + self._told + self.dropped

    def close(self) -> None:
        """Write what can still be written, and log no more."""
        self.report_repeats()
        self.flush()
        self._sink.close()

    def forsake(self) -> None:
        """Close our copy of a log in a forked process: what still waits there is its owner's."""
        self._backlog.clear()
        self._waiting = 0
        self._sink.close()

    def reply(self, event: str, **fields: object) -> None:
        """Log what somebody has just asked for, whatever the level."""
        self._log(Priority.INFO, event, fields)

    def reply_error(self, event: str, **fields: object) -> None:
        """Log why what somebody has just asked for is not done: each time that it is asked for."""
        self._log(Priority.ERROR, event, fields)

    def connection(self, **fields: object) -> None:
        if self.connections:
            self._log(Priority.INFO, "connection", fields)

    def _log(
        self,
        priority: Priority,
        event: str,
        fields: Mapping[str, object],
        *,
        once: bool = False,
        account: object = None,
    ) -> None:
        try:
            words = " ".join([f"event={event}", *(f"{key}={field(fields[key])}" for key in fields)])
            if not once or self._repeats.first(priority, event, words, account):
                self._write(priority, words)
            if once:
                self.on_repeats()
        except Exception:  # whatever it was, the proxy goes on
            self.dropped += 1

    def _write(self, priority: Priority, words: str) -> None:
        try:
            self._append(self._line(priority, words))
        except Exception:  # as above
            self.dropped += 1

    def _line(self, priority: Priority, words: str) -> bytes:
        if self._prefixed:
            start = f"<{priority.value}>"
        else:
            now = _EPOCH + timedelta(seconds=self._clock())
            level = priority.name.lower()
            start = f"time={now.isoformat(timespec='milliseconds')}Z level={level} "
        return (start + words).encode("ascii", "replace")[: MAX_LINE - 1] + b"\n"

    def _append(self, line: bytes) -> None:
        if self._waiting + len(line) > MAX_BACKLOG:
            self.dropped += 1
            return
        self._backlog.append(line)
        self._waiting += len(line)
        if len(self._backlog) == 1:
            self.flush()
        if self._backlog:
            self.on_backlog()

    def flush(self) -> bool:
        """Write what waits; say whether anything still does."""
        while self._backlog:
            lines, count = self._owed, 0
            for line in self._backlog:
                if count and len(lines) + len(line) > self._sink.batch:
                    break
                lines += line
                count += 1
            try:
                taken = self._sink.write(lines)
            except BlockingIOError:
                return True
            except OSError:
                # The reader is gone or the disk is full: these are lost, later ones may not be.
                self._lose(count)
                continue
            if not taken:
                return True
            self._taken(taken)
            if self.dropped and not self._begun and not self._told:
                self._tell_of_dropped()
        return False

    def _tell_of_dropped(self) -> None:
        """Have the next line say how many were dropped since the last that did."""
        line = self._line(Priority.WARNING, f"event=log_lines_dropped count={self.dropped}")
        self.dropped, self._told = 0, self.dropped
        self._backlog.appendleft(line)
        self._waiting += len(line)

    def _taken(self, size: int) -> None:
        """Forget what was written: ``size`` bytes from where we are."""
        size -= len(self._owed)
        self._owed = b""
        self._waiting -= size
        while self._backlog and size >= len(self._backlog[0]):
            size -= len(self._backlog.popleft())
            self._begun = False
            self._lost += self._told
            self._told = 0
        if size:
            self._backlog[0] = self._backlog[0][size:]
            self._begun = True

    def _lose(self, count: int) -> None:
        """Give up the first lines; the first of them may have been begun."""
        if self._begun:
            self._owed = b"\n"
            self._begun = False
        for _ in range(count):
            self._waiting -= len(self._backlog.popleft())
        # A line that told of others is none of them.
        self.dropped += self._told + count - (self._told > 0)
        self._told = 0
