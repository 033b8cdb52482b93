"""The listening sockets that we were started with.

Standard input first, as systemd's ``StandardInput=socket``, inetd and s6 pass it; else the
LISTEN_FDS convention of sd_listen_fds(3). Status sockets come by that alone, beside either.
"""

import contextlib
import fcntl
import itertools
import os
import socket
import sys
from collections.abc import Iterable, MutableMapping, Sequence
from typing import NamedTuple

from sniproxy.process.notify import CANARY
from sniproxy.process.parcel import Parcel, connections_in

BOUND_BY = "SNIPROXY_BOUND_BY"
"""Variable: the process that has bound the sockets and become us, set by ``sniproxy-listen``."""

STANDARD_INPUT = 0
_STANDARD_ERROR = 2
_FIRST_LISTEN_FD = 3
_LONGEST_COUNT = 9
_UNNAMED = "unknown"
_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}


_ANNOUNCED = "proxy"
_STATUS = "status"
_OF_A_UNIT = ".socket"


class Listening(NamedTuple):
    """A listening socket, and what it is called where it comes from (FileDescriptorName=)."""

    socket: socket.socket
    name: str = _UNNAMED

    @property
    def announced(self) -> bool:
        """Whether its clients come through a balancer that says in a PROXY header who they are: if
        it is called "proxy…". (The name of a unit is what systemd gives where nobody has chosen.)
        """
        return self.name.startswith(_ANNOUNCED) and not self.name.endswith(_OF_A_UNIT)

    @property
    def status(self) -> bool:
        """Whether it is not for clients, but for those who want to see what we do: if it is called
        "status"."""
        return self.name == _STATUS


class NoListeningSocket(Exception):  # noqa: N818 - what the user is told
    """We were started without a listening socket; the text says how to pass one."""


def listening_sockets(
    environment: MutableMapping[str, str], *, announced: bool = False
) -> list[Listening]:
    """Take over the sockets that were passed, at descriptors of our own, close-on-exec: at least
    one for clients. One on standard input, which comes first and has no name, gets that of an
    ``announced`` one if it is to be one; beside it only status sockets are taken.

    Raises ``NoListeningSocket``. The variables of the convention are removed from
    ``environment`` whether used or not: they are not for our children.
    """
    descriptors, names = _by_convention(environment)
    refusal = _why_not(STANDARD_INPUT)
    passed: Iterable[tuple[int, str]]
    if refusal is None:
        passed = [one for one in zip(descriptors, names, strict=False) if one[1] == _STATUS]
    else:
        passed = zip(descriptors, names or itertools.repeat(_UNNAMED), strict=False)
    proved = []
    for fd, name in passed:
        why_not = _why_not(fd)
        if why_not is not None:
            raise NoListeningSocket(
                f"LISTEN_FDS is {len(descriptors)}, but descriptor {fd} is not a listening socket "
                f"({why_not}): pass stream sockets only (ListenStream=)"
            )
        proved.append((fd, name))
    if refusal is not None and all(name == _STATUS for _, name in proved):
        if sys.stdin is None:  # as it was when we were started, whatever has that number now
            refusal = "it is closed"
        besides = ", and all that were passed besides are status sockets" if proved else ""
        raise NoListeningSocket(
            f"standard input is not a listening socket ({refusal}){besides}: start sniproxy from "
            "systemd, inetd or s6, or try `sniproxy-listen 127.0.0.1:8443 sniproxy`; manual: man 8 "
            "sniproxy"
        )
    listening = [Listening(_own(fd), name) for fd, name in proved]
    for fd, _ in proved:
        os.close(fd)
    if refusal is None:
        at_input = Listening(_own(STANDARD_INPUT), _ANNOUNCED if announced else _UNNAMED)
        listening.insert(0, at_input)
    return listening


def _by_convention(environment: MutableMapping[str, str]) -> tuple[range, list[str]]:
    """Take what the variables say: which descriptors were passed to us, nobody knows yet whether
    they are open, and what they are called; no names where there is not one for each."""
    passed = {
        name: environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    }
    count = passed["LISTEN_FDS"]
    if passed["LISTEN_PID"] != str(os.getpid()) or not count.strip("0"):
        return range(0), []
    if not count.isdecimal() or len(count) > _LONGEST_COUNT:
        raise NoListeningSocket(f"LISTEN_FDS is {count!r}: expected a number, sd_listen_fds(3)")
    descriptors = range(_FIRST_LISTEN_FD, _FIRST_LISTEN_FD + int(count))
    names = passed["LISTEN_FDNAMES"].split(":")
    return descriptors, names if len(names) == len(descriptors) else []


def stored_parcels(environment: MutableMapping[str, str]) -> list[Parcel]:
    """Take the parcels over that the process before us has left, off the end of LISTEN_FDS: behind
    the listening sockets, what the service manager keeps is passed (sd_listen_fds(3))."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    if environment.get("LISTEN_FDS") != str(len(names)):
        return []
    parcels = []
    while names and (names[-1] == CANARY or connections_in(names[-1]) is not None):
        name = names.pop()
        fd = _FIRST_LISTEN_FD + len(names)
        with contextlib.suppress(OSError):
            one = _own(fd)
            if one.family == socket.AF_UNIX and one.type == socket.SOCK_SEQPACKET:
                parcels.append(Parcel(one, connections_in(name) or 0))
            else:
                one.close()
        with contextlib.suppress(OSError):
            os.close(fd)
    environment["LISTEN_FDS"] = str(len(names))
    environment["LISTEN_FDNAMES"] = ":".join(names)
    return parcels


def pass_on(
    environment: MutableMapping[str, str],
    listening: Sequence[Listening],
    standard: Sequence[int],
    parcels: Sequence[Parcel],
) -> None:
    """Set everything up as at a start, for the program that is run next in this process: the
    listening sockets, the first at the ``standard`` descriptors, the others with their names behind
    them, then the parcels. All of them are given up here."""
    passed = [*(one.socket for one in listening), *(one.socket for one in parcels)]
    first_free = _FIRST_LISTEN_FD + len(passed)
    high = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, first_free) for one in passed]
    for one in passed:
        one.close()
    for fd in standard:
        os.dup2(high[0], fd)
    labels = [*(one.name for one in listening), *(one.name for one in parcels)]
    rest = high
    if STANDARD_INPUT in standard:
        del labels[0]
        rest = high[1:]
        os.close(high[0])
    for target, source in enumerate(rest, _FIRST_LISTEN_FD):
        os.dup2(source, target)
        os.close(source)
    environment["LISTEN_PID"] = str(os.getpid())
    environment["LISTEN_FDS"] = str(len(rest))
    environment["LISTEN_FDNAMES"] = ":".join(labels)


def bound_by_us(environment: MutableMapping[str, str]) -> bool:
    """Say whether nobody else has the listening sockets: we have bound them in an earlier life.

    The kernel can't be asked. What a manager has passed, it keeps; of what inetd, s6 or a shell
    pass, nobody knows. The variable is removed.
    """
    return environment.pop(BOUND_BY, "") == str(os.getpid())


def _why_not(fd: int) -> str | None:
    """Say what ``fd`` is instead of a listening stream socket; None if it is one."""
    try:
        # Closed with the object: the copy, not the descriptor that we were given.
        with _own(fd) as candidate:
            if candidate.family not in _FAMILIES:
                return f"a socket of family {candidate.family!s}"
            if candidate.type != socket.SOCK_STREAM:
                return "a socket, but not of a stream"
            if not candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return "a stream socket, but it does not listen"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _own(fd: int) -> socket.socket:
    # Not where a standard descriptor is closed: it would be taken for what inetd passes there.
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD_ERROR + 1)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def same_file(one: int, other: int) -> bool:
    """Say whether two descriptors are the same socket or file; a closed one is neither."""
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:
        return False


def replace_standard_descriptors(listening: socket.socket, placeholder: int) -> list[int]:
    """Put ``placeholder`` where a standard descriptor is closed or the listening socket; say which
    were that.

    A copy that stayed open would keep the socket listening when we have stopped, and a number that
    is free would go to a client's connection, to be written to by whoever writes to descriptor 1.
    """
    were = [fd for fd in (0, 1, 2) if same_file(fd, listening.fileno())]
    for fd in (0, 1, 2):
        if fd in were or not same_file(fd, fd):
            os.dup2(placeholder, fd)
    return were
