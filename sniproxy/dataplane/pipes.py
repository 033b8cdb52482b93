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
    """A pipe and how many bytes are in it."""

    __slots__ = ("held", "read", "size", "write")

    def __init__(self) -> None:
        self.read, self.write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.held = 0
        try:
            self.size = fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            self.size = fcntl.fcntl(self.write, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """The pipes of the process: at most ``limit``, made when first needed."""

    __slots__ = ("_count", "_idle", "_limit")

    def __init__(self, limit: int = MAX_PIPES) -> None:
        self._idle: list[Pipe] = []
        self._count = 0
        self._limit = limit

    def take(self) -> Pipe | None:
        """Give an empty pipe, or None where none is to be had: then copy."""
        if self._idle:
            return self._idle.pop()
        if self._count >= self._limit:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        if pipe.size < BULK:
            pipe.close()
            return None
        self._count += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back: kept if it is empty, else closed with what is in it."""
        if pipe.held or self._count > self._limit:
            pipe.close()
            self._count -= 1
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
        for pipe in self._idle:
            pipe.close()
        self._count -= len(self._idle)
        self._idle.clear()
