"""Endings: the words by which the log says how a connection was lost.

A reset is the work of a peer; a peer that has gone without one is found by TCP keep-alive or by
what is not acknowledged, and a router may say that there is no way to it.
"""

import errno
from socket import SO_ERROR, SOL_SOCKET, SocketType
from typing import Final

_RESET = "reset_by_{}"
_UNREACHABLE = "{}_unreachable"
_WORDS = {
    None: _RESET,
    errno.ECONNRESET: _RESET,
    errno.ECONNABORTED: _RESET,
    errno.ECONNREFUSED: _RESET,
    errno.EPIPE: _RESET,
    # What a shutdown says of one that has been reset.
    errno.ENOTCONN: _RESET,
    errno.ETIMEDOUT: "{}_timed_out",
    # What ICMP says becomes these, icmp(7) and net/ipv4/icmp.c.
    errno.ENETUNREACH: _UNREACHABLE,
    errno.EHOSTUNREACH: _UNREACHABLE,
    errno.ENOPROTOOPT: _UNREACHABLE,
    errno.EOPNOTSUPP: _UNREACHABLE,
    errno.ENETDOWN: _UNREACHABLE,
    errno.EHOSTDOWN: _UNREACHABLE,
    errno.ENONET: _UNREACHABLE,
}


def pending(stream: SocketType) -> int:
    """Take the error (errno) that the kernel has noted for a socket, 0 where there is none."""
    return stream.getsockopt(SOL_SOCKET, SO_ERROR)


def lost(who: str, error: int | None = None) -> str:
    """Name the end of a connection by ``error`` (errno) of the socket to ``who``."""
    return _WORDS.get(error, "{}_failed").format(who)


CLIENT_LOST: Final = frozenset(lost("client", error) for error in errno.errorcode)
"""Endings after which nothing reaches the client any more."""


def words(error: OSError) -> object:
    """Say what a backend has that can't be connected to. The system's words for a full queue would
    say that a resource is unavailable."""
    full = isinstance(error, BlockingIOError)
    return "accept queue full" if full else error.strerror or error
