"""The log: one line an event, ``key=value``, to wherever standard error leads.

Writing a line never raises, never blocks and never kills. Each kind of destination has its own
way of not blocking, since O_NONBLOCK can't be set on a description that others share: a socket
(the journal's stream) takes MSG_DONTWAIT, a pipe takes a non-blocking splice(2), a terminal is
opened anew, a file never blocks. What does not fit waits in a bounded backlog; beyond
that, lines are dropped and counted.
"""

import codecs
import enum
import errno
import os
import re
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Protocol

MAX_LINE = 4096
"""Bytes. PIPE_BUF, so that the lines of several processes never mix (pipe(7))."""

MAX_BACKLOG = 512
"""Lines that wait for a slow reader: some 64 KiB, as much as a pipe holds itself."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+,\[\]-]+")
_EPOCH = datetime(1970, 1, 1)  # naive on purpose: no zone is ever looked up
_SYSLOG_SOCKET = "/dev/log"
_FACILITY_DAEMON = 3 << 3

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


class Sink(Protocol):
    """Where lines go. ``write`` takes up to ``batch`` whole lines, of MAX_LINE bytes together, all
    or none of them; it raises BlockingIOError for "not now", any other OSError for "never"."""

    batch: int

    def write(self, lines: bytes) -> None: ...

    def close(self) -> None:
        """Close what the sink has opened itself, not where the lines go."""


class SocketSink:
    """A stream socket, such as the journal's."""

    batch = MAX_BACKLOG

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))

    def write(self, lines: bytes) -> None:
        sent = self._socket.send(lines, socket.MSG_DONTWAIT)
        if sent < len(lines):
            # The rest of a line that was begun: the next line still starts on its own.
            raise OSError(errno.EMSGSIZE, "a line was cut short")

    def close(self) -> None:
        self._socket.close()


class PipeSink:
    """A pipe: the lines are first put into one of our own, then spliced without blocking.

    poll(2) would not do: between it and the write another process may fill the pipe. Only where
    splice(2) is forbidden there is nothing better.
    """

    batch = MAX_BACKLOG

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, lines: bytes) -> None:
        os.write(self._write, lines)
        try:
            os.splice(self._read, self._fd, len(lines), flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            os.read(self._read, len(lines))
            raise
        except OSError:
            os.read(self._read, len(lines))
            if not self._poll.poll(0):
                raise BlockingIOError(errno.EAGAIN, "the pipe is full") from None
            # It says whether it is the reader that is gone.
            os.write(self._fd, lines)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class TerminalSink:
    """A terminal, which somebody may have stopped with Ctrl-S, or not read for long.

    It is opened anew, so that O_NONBLOCK is ours alone. Where that is not possible, as in a jail
    without /dev, poll(2) is asked first, which knows whether there is room, but not how much.
    """

    batch = MAX_BACKLOG

    def __init__(self, fd: int) -> None:
        self._own = _opened_anew(fd)
        self._fd = fd if self._own is None else self._own
        self._written = 0
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, lines: bytes) -> None:
        if not self._poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, "the terminal is stopped")
        # What was refused comes again, perhaps with more behind it.
        self._written += os.write(self._fd, lines[self._written :])
        if self._written < len(lines):
            raise BlockingIOError(errno.EAGAIN, "the terminal is slow")
        self._written = 0

    def close(self) -> None:
        if self._own is not None:
            os.close(self._own)


def _opened_anew(terminal: int) -> int | None:
    """Open a terminal's device for us alone, non-blocking; None where it is not to be had.

    ttyname(3) compares the device: in a jail, what is called like it may be anybody's file.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(os.ttyname(terminal), flags)
    except OSError:
        return None


class FileSink:
    """A regular file, or a device that takes everything."""

    batch = MAX_BACKLOG

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, lines: bytes) -> None:
        os.write(self._fd, lines)

    def close(self) -> None:
        pass


class SyslogSink:
    """The local syslog daemon by datagrams (RFC 3164 section 4.1.1 with the <N> of each line)."""

    batch = 1

    def __init__(self, path: str = _SYSLOG_SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._tag = f"sniproxy[{os.getpid()}]: ".encode()

    def write(self, lines: bytes) -> None:
        priority, _, text = lines.rstrip(b"\n").partition(b">")
        number = _FACILITY_DAEMON | int(priority[1:])
        self._socket.sendto(b"<%d>" % number + self._tag + text, self._path)

    def close(self) -> None:
        self._socket.close()


class NullSink:
    """Nowhere."""

    batch = MAX_BACKLOG

    def write(self, lines: bytes) -> None:
        pass

    def close(self) -> None:
        pass


def sink_of(fd: int) -> Sink:
    """Choose the way of writing to ``fd`` without blocking."""
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            return SocketSink(fd)
        if stat.S_ISFIFO(mode):
            return PipeSink(fd)
    except OSError:
        return NullSink()
    if stat.S_ISCHR(mode) and os.isatty(fd):
        return TerminalSink(fd)
    return FileSink(fd)


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
        """Called when lines had to wait: ``flush`` wants to be called a little later."""

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
