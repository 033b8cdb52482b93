"""Where lines of the log go: each kind of destination has its own way of not blocking.

O_NONBLOCK can't be set on a description that others share: a socket (the journal's stream) takes
MSG_DONTWAIT, a pipe takes a non-blocking splice(2), a terminal is opened anew, a file never blocks.
"""

import errno
import fcntl
import os
import select
import socket
import stat

MAX_LINE = 4096
"""Bytes. PIPE_BUF, so that the lines of several processes never mix (pipe(7))."""

_SYSLOG_SOCKET = "/dev/log"
_FACILITY_DAEMON = 3 << 3


class Sink:
    """Where lines go: this one, nowhere. ``write`` takes a line, or several of ``batch`` bytes at
    most, and says how many bytes were taken: where that is in the middle of a line, the next write
    begins with its rest. It raises BlockingIOError for "not now", any other OSError for "never"."""

    batch = MAX_LINE

    def write(self, lines: bytes) -> int:
        return len(lines)

    def close(self) -> None:
        """Close what the sink has opened itself, not where the lines go."""


class SocketSink(Sink):
    """A stream socket, such as the journal's."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))

    def write(self, lines: bytes) -> int:
        return self._socket.send(lines, socket.MSG_DONTWAIT)

    def close(self) -> None:
        self._socket.close()


class PipeSink(Sink):
    """A pipe: the lines are first put into one of our own, then spliced without blocking.

    poll(2) would not do: between it and the write another process may fill the pipe. Only where
    splice(2) is forbidden there is nothing better.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, lines: bytes) -> int:
        left = os.write(self._write, lines)
        try:
            left -= os.splice(self._read, self._fd, left, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError:
            if not self._poll.poll(0):
                raise BlockingIOError(errno.EAGAIN, "the pipe is full") from None
            # It says whether it is the reader that is gone.
            return os.write(self._fd, lines)
        finally:
            if left:
                os.read(self._read, left)
        return len(lines) - left

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class TerminalSink(Sink):
    """A terminal, which somebody may have stopped with Ctrl-S, or not read for long.

    It is opened anew, so that O_NONBLOCK is ours alone. Where that is not possible, as in a jail
    without /dev, poll(2) is asked first, which knows whether there is room, but not how much.
    """

    def __init__(self, fd: int) -> None:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            # ttyname(3) compares the device: what is called like it may be anybody's file there.
            self._fd = os.open(os.ttyname(fd), flags)
        except OSError:
            self._fd = os.dup(fd)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, lines: bytes) -> int:
        if not self._poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, "the terminal is stopped")
        return os.write(self._fd, lines)

    def close(self) -> None:
        os.close(self._fd)


class FileSink(Sink):
    """A regular file, or a device that takes everything.

    A full disk takes a part of a line. Others write to the same file, this program's other
    processes and its next copy among them, and none of them could know that the line is to be
    completed or ended first. So it is taken back, where it is the end of the file.

    The disk is full for the others until that is done, and in a file that is appended to nothing is
    to be done after it: then somebody else's line may be there. (``2>`` appends not: whoever writes
    in between leaves a gap there. ``2>>`` does.)
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, lines: bytes) -> int:
        taken = os.write(self._fd, lines)
        if taken == len(lines):
            return taken
        whole = lines.rfind(b"\n", 0, taken) + 1
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if os.fstat(self._fd).st_size != end:
                return taken
            appends = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND
            os.ftruncate(self._fd, end - taken + whole)
            if not appends:
                os.lseek(self._fd, whole - taken, os.SEEK_CUR)
        except OSError:
            return taken
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole


class SyslogSink(Sink):
    """The local syslog daemon by datagrams (RFC 3164 section 4.1.1 with the <N> of each line)."""

    batch = 0

    def __init__(self, path: str = _SYSLOG_SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._tag = f"sniproxy[{os.getpid()}]: ".encode()

    def write(self, lines: bytes) -> int:
        priority, _, text = lines.rstrip(b"\n").partition(b">")
        number = _FACILITY_DAEMON | int(priority[1:])
        self._socket.sendto(b"<%d>" % number + self._tag + text, self._path)
        return len(lines)

    def close(self) -> None:
        self._socket.close()


def sink_of(fd: int) -> Sink:
    """Choose the way of writing to ``fd`` without blocking."""
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            return SocketSink(fd)
        if stat.S_ISFIFO(mode):
            return PipeSink(fd)
    except OSError:
        return Sink()
    if stat.S_ISCHR(mode) and os.isatty(fd):
        return TerminalSink(fd)
    return FileSink(fd)
