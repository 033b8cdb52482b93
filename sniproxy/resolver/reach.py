"""Reaching a backend: all the look-ups of one client, for a data plane that must not wait for them.

It decides what an arrival decides that looks up by itself, by the same questions to ``Hosts``. It
says beforehand whose entry it goes into (``Hosts.entering``): who is called there may know that one
to hang, and raise ``Barred``.
"""

from socket import AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM, SocketType

from sniproxy.parser.alert import Alert
from sniproxy.resolver.answer import NOBODY, UNSURE, Answer, Outcome
from sniproxy.resolver.hosts import NO_SUCH_HOST, Hosts
from sniproxy.resolver.naming import ACME_SOCKET, SOCKET, directory_name

OWNER_HANGS = "owner_hangs"
OWNER_SLOW = "owner_slow"
OWNER_BARRED = "owner_barred"
"""Reasons for a refusal: one of the owner's entries is not answered, or all are answered late, or
a backend of his has passed descriptors."""

HOSTS_DIRECTORY_HANGS = "hosts_directory_hangs"
"""Trouble: who makes hosts in that directory keeps it locked. What the kernel remembers of it can
be looked up all the same: the names of hosts that were reached before."""

_UNIX = int(AF_UNIX)
_STREAM_NONBLOCK = SOCK_STREAM.value | SOCK_NONBLOCK.value


class Barred(Exception):  # noqa: N818 - an answer, not a fault
    """The entries of an owner are not gone into; ``passes``: it may be over in a moment."""

    def __init__(self, owner: int, reason: str, *, passes: bool) -> None:
        super().__init__(owner, reason)
        self.owner = owner
        self.reason = reason
        self.passes = passes


def reach(
    hosts: Hosts, host: str, validates: int, known: int = NOBODY
) -> tuple[Answer, SocketType | None]:
    """Look for the backend of a host, empty for who names none; ``validates`` is as in a
    ``question``. Whose its entry is ``known`` to have been is to blame if that itself can't be
    asked for. The socket is the caller's."""
    entry = line = host
    backend: SocketType | None = None
    try:
        if known != NOBODY:
            hosts.entering(known)
        if not host:
            named = hosts.fallback("")
            if named is None:
                return _refused(host, Alert.UNRECOGNIZED_NAME, "no_server_name"), None
            entry = named
        while True:
            directory, socket_name, line = directory_name(entry), SOCKET, entry
            try:
                if entry is host:  # a fallback was entered when it was found
                    owner = hosts.owner(directory)
                    if owner >= 0:
                        hosts.entering(owner)
                if validates and hosts.has(directory, ACME_SOCKET):
                    if validates == UNSURE:
                        if backend is not None:
                            backend.close()
                        return Answer(Outcome.WHOLE, line), None
                    socket_name, line = ACME_SOCKET, f"{line}/{ACME_SOCKET}"
                if backend is None:
                    backend = SocketType(_UNIX, _STREAM_NONBLOCK)
                hosts.connect(directory, backend, socket_name)
            except OSError as error:
                refused = hosts.refusal(directory, error)
                if refused.reason == NO_SUCH_HOST and entry is host:
                    named = hosts.fallback(host)
                    if named is not None:
                        entry = named
                        continue
                passes = hosts.may_pass(directory, refused, error)
                if backend is not None:
                    backend.close()
                said = _refused(line, refused.alert or 0, refused.reason, passes=passes)
                return said._replace(error=error.errno or 0), None
            version = hosts.proxy_version(directory)
            return _USUAL[version] if line is host else _reached(line, version), backend
    except Barred as barred:
        if backend is not None:
            backend.close()
        said = _refused(line, Alert.INTERNAL_ERROR, barred.reason, passes=barred.passes)
        return said._replace(owner=barred.owner), None


def _reached(line: str, version: int) -> Answer:
    return Answer(Outcome.REACHED, line, version)


_USUAL = [_reached("", version) for version in range(3)]
"""Those of the usual answer, by the PROXY header that is wanted."""


def _refused(line: str, alert: int, reason: str, *, passes: bool = False) -> Answer:
    return Answer(Outcome.MAY_PASS if passes else Outcome.REFUSED, line, alert=alert, reason=reason)


def fault(line: str, error: Exception) -> Answer:
    """Say that something failed which is nobody's fault."""
    number = error.errno if isinstance(error, OSError) else None
    return Answer(
        Outcome.REFUSED,
        line,
        alert=Alert.INTERNAL_ERROR,
        reason="backend_fault" if number else "resolver_fault",
        error=number or 0,
    )


def hanging(owner: int) -> Answer:
    """Say that nobody has come back from an owner's entry, whichever it is."""
    said = _refused("", Alert.INTERNAL_ERROR, OWNER_HANGS, passes=True)
    return said._replace(owner=owner)
