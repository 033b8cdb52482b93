"""The hosts directory: from a host name to a connected backend.

The working directory of the process is the hosts directory, opened once at the start; everything
below it is looked up afresh for every connection, so that the file system is the configuration.
Nothing in it is ever opened: a socket is connected to, file names are asked for.

Only this module touches paths, and only it says which failure of a look-up is which alert.
"""

import errno
import os
import stat
from collections.abc import Callable
from socket import AF_UNIX, SOL_SOCKET, SocketType

from sniproxy.parser.alert import Alert, Refusal
from sniproxy.resolver import naming

SUN_PATH = 107
"""Bytes of a socket's path without its final NUL, unix(7)."""

NO_SUCH_HOST = "no_such_host"
_NO_SOCKET = "no_socket"
_NOTHING_LISTENS = "nothing_listens"
_PERMISSION_DENIED = "permission_denied"
BACKEND_DOWN = frozenset({_NO_SOCKET, _NOTHING_LISTENS, _PERMISSION_DENIED})
"""Reasons for a refusal that pass when the backend is started: nginx, for one, binds its socket
first and lets others connect to it then."""

OVERFLOW_UID = 65534
"""Who owns, as it seems in a user namespace (PrivateUsers=), what belongs to any user that is not
mapped into it (user_namespaces(7)): so it may be anybody."""

SO_PASSRIGHTS = 83
"""Option of a Unix socket, Linux 6.16 (asm-generic/socket.h): whether others may pass descriptors
to it. Who reads them without wanting them closes them, and waits for as long as that takes: hours,
for a TCP socket with unsent bytes and SO_LINGER."""

_UNKNOWN_HOST = {
    errno.ENOENT: _NO_SOCKET,
    errno.ENOTDIR: _NO_SOCKET,
    errno.ENAMETOOLONG: _NO_SOCKET,
    errno.ELOOP: "link_loop",
    errno.EACCES: _PERMISSION_DENIED,
    errno.EPERM: _PERMISSION_DENIED,
    errno.ECONNREFUSED: _NOTHING_LISTENS,
}

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

DESCRIPTORS_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors that pass when others give back what they hold, accept(2) and socket(2)."""


_access, _EXISTS = os.access, os.F_OK


class NoHostsDirectory(OSError):  # noqa: N818 - what the user is told
    """The working directory can't be the hosts directory."""

    def __str__(self) -> str:
        try:
            where = os.getcwd()
        except OSError:
            where = "."  # it has no name any more
        return (
            f"the hosts directory is the working directory, {where!a}, and uid {os.geteuid()} "
            f"can't use it: {self.strerror}"
        )


def refuse_descriptors(stream: SocketType) -> bool:
    """Have nobody pass descriptors to a Unix socket, nor to what is accepted from it; say whether
    this kernel can refuse them (``SO_PASSRIGHTS``)."""
    try:
        stream.setsockopt(SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def can_refuse_descriptors() -> bool:
    """Say whether this kernel can."""
    probe = SocketType(AF_UNIX)
    try:
        return refuse_descriptors(probe)
    finally:
        probe.close()


class Hosts:
    """The hosts directory: the working directory at the time of the call.

    Raises NoHostsDirectory where that can't be entered, or has been deleted: nobody could ever make
    a host in it.
    """

    def __init__(self) -> None:
        try:
            self._descriptor = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError as error:
            raise NoHostsDirectory(error.errno, error.strerror) from None
        status = os.fstat(self._descriptor)
        self._device = status.st_dev
        if not status.st_nlink:
            self.close()
            raise NoHostsDirectory(errno.ENOENT, "it has been deleted")
        self._elsewhere = False
        self.refuses_descriptors = can_refuse_descriptors()
        self.shared = bool(status.st_mode & _BY_OTHERS)
        """Whether others than its owner could make hosts in it at the start."""
        self.entering: Callable[[int], object] = lambda _owner: None
        """Called with whose an entry is before ``fallback`` follows or gives it."""

    def fileno(self) -> int:
        """Descriptor of the hosts directory: it can be entered, and neither read nor written."""
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def connect(
        self, directory: str, backend: SocketType, socket_name: str = naming.SOCKET
    ) -> None:
        """Connect a non-blocking Unix stream socket to the backend of a host's directory.

        Where the kernel can do it, the backend can pass no descriptor over it: its sendmsg(2) fails
        with EPERM.

        Raises OSError: BlockingIOError where the backend's accept queue is full (then nothing
        ever tells that it has room again), anything else to be sorted by ``refusal``.
        """
        if self.refuses_descriptors:
            backend.setsockopt(SOL_SOCKET, SO_PASSRIGHTS, 0)
        path = f"{directory}/{socket_name}"
        if self._elsewhere:
            self._return()
        if len(path) <= SUN_PATH:
            backend.connect(path)
            return
        # No address holds this path, so step into the directory. Nothing else of this process
        # can run before we are back: there is one thread, and signals only set a flag.
        os.chdir(directory)
        self._elsewhere = True
        try:
            backend.connect(socket_name)
        finally:
            self._return()

    def refusal(self, directory: str, error: OSError) -> Refusal:
        """Sort a failed connect: an unknown host, or (``Alert.INTERNAL_ERROR``) a fault to warn of.

        The error does not tell whether it is the host's directory that is missing or what should be
        in it. Only where one of them is, it is asked for, once.
        """
        reason = _UNKNOWN_HOST.get(error.errno or 0)
        if reason is None:
            full = isinstance(error, BlockingIOError)
            return Refusal(Alert.INTERNAL_ERROR, "queue_full" if full else "backend_fault")
        if reason is _NO_SOCKET and not self.has(directory, "."):
            reason = NO_SUCH_HOST
        return Refusal(Alert.UNRECOGNIZED_NAME, reason)

    def may_pass(self, directory: str, refused: Refusal, error: OSError) -> bool:
        """Say whether a failed connect is one that who has time tries again."""
        return isinstance(error, BlockingIOError) or (
            refused.reason in BACKEND_DOWN and self.has(directory, naming.WAIT_FOR_BACKEND)
        )

    def _return(self) -> None:
        """Come back to the hosts directory, or else let no look-up happen anywhere else.

        It fails where the right to enter has just been taken away: then every look-up fails,
        with this OSError, until it succeeds.
        """
        os.fchdir(self._descriptor)
        self._elsewhere = False

    def owner(self, directory: str) -> int:
        """Give the uid of who made a host's entry, be it a directory or a link; -1 where that is
        not there."""
        try:
            if self._elsewhere:
                self._return()
            return os.lstat(directory).st_uid
        except OSError:
            return -1

    def account(self, directory: str) -> str | int:
        """Say on whose account a host goes, where something is limited: its owner's (uid), who
        could make any number of hosts, or its own, where that is root or the owner of the hosts
        directory."""
        return self.account_of(directory, self.owner(directory))

    def account_of(self, directory: str, owner: int) -> str | int:
        """The same of a host whose owner is known."""
        return directory if self.trusts(owner) else owner

    def trusts(self, owner: int) -> bool:
        """Say whether it is root, or the owner of the hosts directory."""
        if owner in (0, OVERFLOW_UID):
            return owner == 0
        return owner == os.fstat(self._descriptor).st_uid

    def has(self, directory: str, name: str) -> bool:
        """Say whether there is something of that name in a host's directory."""
        return os.access(f"{directory}/{name}", os.F_OK)

    def proxy_version(self, directory: str) -> int:
        """Say which PROXY header a host wants: 2, 1, or 0 for none. The newer one wins."""
        # Of each connection it is asked for, so not by way of ``has``.
        if _access(f"{directory}/{naming.SEND_PROXY_V2}", _EXISTS):
            return 2
        return 1 if _access(f"{directory}/{naming.SEND_PROXY_V1}", _EXISTS) else 0

    def fallback(self, host: str) -> str | None:
        """Name the entry that serves a host which has no directory of its own, or clients without
        a server name (empty); None where nothing does. At most four look-ups.

        Such an entry takes what nobody else has, so it counts only if there is no ``doubt`` about
        it, be it a link or not, nor about the directory that it leads to.
        """
        for entry in naming.fallbacks(host):
            directory = naming.directory_name(entry)
            try:
                if self._elsewhere:
                    self._return()
                status = os.lstat(directory)
                # A file system that is mounted there may say what it likes.
                if status.st_dev != self._device:
                    continue
                owner = status.st_uid
                if stat.S_ISLNK(status.st_mode):
                    if self.doubt(status.st_mode, owner):
                        continue
                    self.entering(owner)
                    status = os.stat(directory)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode) and not self.doubt(status.st_mode, status.st_uid):
                self.entering(owner)
                return entry
        return None

    def doubt(self, mode: int, owner: int) -> str | None:
        """Say why a link or directory may not be an entry for many hosts: it belongs to neither
        root nor the owner of the hosts directory, or others may write to it. (To that of a group
        only where others can make entries: from a place of their own they could rename a directory
        or a link of the owner's into it.)"""
        if owner == OVERFLOW_UID:
            return "who may be anybody"
        if not self.trusts(owner):
            return "and not to root or the owner of the hosts directory"
        if stat.S_ISLNK(mode) or not mode & _BY_OTHERS:
            return None
        if mode & stat.S_IWOTH or os.fstat(self._descriptor).st_mode & _BY_OTHERS:
            return "and others may write to it, who could put a socket there"
        return None

    def awaits_validation(self, host: str) -> bool:
        """Say whether a certificate authority that validates a host gets a socket of its own."""
        directory = naming.directory_name(host)
        if self.has(directory, naming.ACME_SOCKET):
            return True
        entry = None if self.has(directory, ".") else self.fallback(host)
        return entry is not None and self.has(naming.directory_name(entry), naming.ACME_SOCKET)
