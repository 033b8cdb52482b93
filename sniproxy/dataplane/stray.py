"""Strays: connections that were accepted and that nobody knows.

Where memory fails between the system call and its answer, ``accept`` forgets the descriptor that it
has got, and its client would wait for ever.
"""

import fcntl
import os
import socket
import stat

from sniproxy.dataplane.poller import Poller


def close_strays(listening: socket.socket, poller: Poller) -> None:
    """Close what was accepted from this socket and has no watcher. It may be called again where it
    has raised MemoryError."""
    for fd in poller.strangers():
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            # A copy shows what it is, and only the copy is closed with the object.
            number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError:
            continue  # free, or none is left for the copy
        try:
            copy = socket.socket(fileno=number)
        except Exception:
            os.close(number)
            raise
        with copy:
            stray = _accepted_from(listening, copy)
        if stray:
            os.close(fd)


def _accepted_from(listening: socket.socket, one: socket.socket) -> bool:
    return (
        (one.family, one.type) == (listening.family, listening.type)
        and not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        and _port(one) == _port(listening)
    )


def _port(one: socket.socket) -> object:
    """Give what a listening socket and all that is accepted from it have in common."""
    name = one.getsockname()
    return name[1] if isinstance(name, tuple) else name
