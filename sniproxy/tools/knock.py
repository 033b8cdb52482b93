"""Knocking: a connection to a backend, without a byte, that the backend can't hold on to.

What a backend passes over a socket (SCM_RIGHTS) is released when we close ours, and releasing may
sleep. So nothing may be passed; not every kernel can forbid it, so the release is interrupted, too.
"""

import contextlib
import errno
import os
import signal
import socket
import stat
from collections.abc import Iterator

from sniproxy.resolver.hosts import SO_PASSRIGHTS, Hosts
from sniproxy.tools.way import Way

_PATIENCE = 0.01
"""Seconds for the release of a socket. It may sleep for as long as whoever passed a TCP socket over
it has asked for, by SO_LINGER; a signal ends that."""


def connect(name: str, way: Way, hosts: Hosts, backend: socket.socket) -> None:
    """Connect as the proxy does. Raises OSError as ``Hosts.connect`` does."""
    if not way.turned:
        hosts.connect(name, backend)
    elif way.error is not None:
        raise OSError(way.error, os.strerror(way.error))
    elif not stat.S_ISSOCK(way.mode):
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    else:
        # Only from where the way has led, the kernel goes the same way.
        os.fchdir(way.directory)
        try:
            backend.connect(way.path[-1])
        finally:
            os.fchdir(hosts.fileno())


@contextlib.contextmanager
def released(backend: socket.socket) -> Iterator[None]:
    """Close a socket at the end, without waiting for what its peer has passed over it."""
    with contextlib.suppress(OSError):  # an older kernel
        backend.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    try:
        yield
    finally:
        # Signals end what sleeps; the timer is given back as it was.
        handler = signal.signal(signal.SIGALRM, lambda *_: None)
        timer = signal.setitimer(signal.ITIMER_REAL, _PATIENCE, _PATIENCE)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        backend.close()
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
