"""Pipes for splice(2): a pool that all connections of a process share."""

import fcntl
import os
from errno import EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM
from typing import Final

BULK: Final = 64 * 1024
"""Bytes of a read that is taken for a part of a bulk transfer."""

PIPE_SIZE: Final = 1024 * 1024
"""Bytes; what an unprivileged process may ask for by default (pipe-max-size, proc(5))."""

MAX_PIPES: Final = 32
"""Half of the 64 large pipes that a user may have (pipe-user-pages-soft, pipe(7)), shared out
between the workers."""

_NO_SPLICE: Final = frozenset({EPERM, ENOSYS, EINVAL, EOPNOTSUPP})
"""What splice(2) says where it is forbidden, or can't for these sockets."""


class Pipe:
    """A pipe and how many bytes are in it. It closes when nobody has it any more, and is counted
    in ``pipes`` until then."""

    __slots__ = ("_pipes", "held", "read", "size", "write")

    def __init__(self, pipes: "Pipes | None" = None) -> None:
        self._pipes: Pipes | None = None
        self.held = 0
        self.read = self.write = -1
        self.read, self.write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.size = fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            self.size = fcntl.fcntl(self.write, fcntl.F_GETPIPE_SZ)
        if pipes is not None:
            pipes.count += 1
            self._pipes = pipes

    def close(self) -> None:
        # One by one, and each no more than once, however often this is begun.
        read, self.read = self.read, -1
        if read >= 0:
            os.close(read)
        write, self.write = self.write, -1
        if write >= 0:
            os.close(write)
        pipes, self._pipes = self._pipes, None
        if pipes is not None:
            pipes.count -= 1

    __del__ = close


class Pipes:
    """The pipes of the process: at most ``limit``, made when first needed."""

    __slots__ = ("_idle", "_limit", "count")

    def __init__(self, limit: int = MAX_PIPES) -> None:
        self._idle: list[Pipe] = []
        self.count = 0
        self._limit = limit

    def take(self) -> Pipe | None:
        """Give an empty pipe, or None where none is to be had: then copy."""
        if self._idle:
            return self._idle.pop()
        if self.count >= self._limit:
            return None
        try:
            pipe = Pipe(self)
        except OSError:
            return None
        if pipe.size < BULK:
            pipe.close()
            return None
        return pipe

    @property
    def scarce(self) -> bool:
        """Whether so many are in use that none is to be held while its backend takes nothing: else
        those of one host could have all of them."""
        return self.count - len(self._idle) > max(1, self._limit // 2)

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back: kept if it is empty, else closed with what is in it."""
        if pipe.held or self.count > self._limit:
            pipe.close()
        else:
            self._idle.append(pipe)

    def refused(self, error: OSError) -> bool:
        """Say whether it is splice(2) that fails, not the connection. Where it never works, there
        are no more pipes."""
        if error.errno in _NO_SPLICE:
            self._limit = 0
            self.close()
            return True
        return error.errno == ENOMEM

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
