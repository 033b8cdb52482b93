"""The log: one line an event, ``key=value``, to wherever standard error leads.

Writing a line never raises, never blocks and never kills. What does not fit waits in a bounded
backlog; beyond that, lines are dropped and counted.
"""

import codecs
import enum
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from sniproxy.log.sinks import MAX_BACKLOG, MAX_LINE, Sink

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+,\[\]-]+")
_EPOCH = datetime(1970, 1, 1)  # naive on purpose: no zone is ever looked up

# Now, and not when a line is to be written: by then there may be no descriptor left to import with.
codecs.lookup("unicode_escape")


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


def is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Say whether ``fd`` is the stream that JOURNAL_STREAM names (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def field(value: object) -> str:
    """Write a value as one word, in quotes and with escapes where it is not a plain one."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'


class Log:
    """Lines of ``key=value``, filtered by level.

    ``prefixed`` lines begin with ``<N>`` (sd-daemon(3)) and have no time stamp, for the journal
    and for syslog have their own; other lines begin with the time in UTC (RFC 3339).
    """

    def __init__(
        self,
        sink: Sink,
        level: Level = Level.INFO,
        *,
        prefixed: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.connections = level >= Level.CONNECTIONS
        self.dropped = 0
        self._sink = sink
        self._level = level
        self._prefixed = prefixed
        self._clock = clock
        self._backlog: deque[bytes] = deque()
        self.on_backlog: Callable[[], None] = lambda: None
        """Called for each line that has to wait: ``flush`` wants to be called a little later."""

    def error(self, event: str, **fields: object) -> None:
        """Log that the process can't do what it is for."""
        self._log(Priority.ERROR, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log a fault of a backend or of the system."""
        self._log(Priority.WARNING, event, fields)

    def info(self, event: str, **fields: object) -> None:
        if self._level >= Level.INFO:
            self._log(Priority.INFO, event, fields)

    def close(self) -> None:
        """Write what can still be written, and log no more."""
        self.flush()
        self._sink.close()

    def forsake(self) -> None:
        """Close our copy of a log in a forked process: what still waits there is its owner's."""
        self._backlog.clear()
        self._sink.close()

    def reply(self, event: str, **fields: object) -> None:
        """Log what somebody has just asked for, whatever the level."""
        self._log(Priority.INFO, event, fields)

    def connection(self, **fields: object) -> None:
        if self.connections:
            self._log(Priority.INFO, "connection", fields)

    def _log(self, priority: Priority, event: str, fields: Mapping[str, object]) -> None:
        try:
            self._append(self._line(priority, event, fields))
        except Exception:  # whatever it was, the proxy goes on
            self.dropped += 1

    def _line(self, priority: Priority, event: str, fields: Mapping[str, object]) -> bytes:
        words = [f"event={event}"]
        words += [f"{key}={field(value)}" for key, value in fields.items()]
        if self._prefixed:
            start = f"<{priority.value}>"
        else:
            now = _EPOCH + timedelta(seconds=self._clock())
            level = priority.name.lower()
            start = f"{now.isoformat(timespec='milliseconds')}Z level={level} "
        return (start + " ".join(words)).encode("ascii", "replace")[: MAX_LINE - 1] + b"\n"

    def _append(self, line: bytes) -> None:
        if len(self._backlog) >= MAX_BACKLOG:
            self.dropped += 1
            return
        self._backlog.append(line)
        if len(self._backlog) == 1:
            self.flush()
        if self._backlog:
            self.on_backlog()

    def flush(self) -> bool:
        """Write what waits; say whether anything still does."""
        while self._backlog:
            lines = b""
            count = 0
            for line in self._backlog:
                if count == self._sink.batch or len(lines) + len(line) > MAX_LINE:
                    break
                lines += line
                count += 1
            try:
                self._sink.write(lines)
            except BlockingIOError:
                return True
            except OSError:
                # The reader is gone or the disk is full: these are lost, later ones may not be.
                lost = count
            else:
                lost = 0
            for _ in range(count):
                self._backlog.popleft()
            if lost:
                self.dropped += lost
            elif self.dropped:
                self.dropped, dropped = 0, self.dropped
                self.warning("log_lines_dropped", count=dropped)
        return False
