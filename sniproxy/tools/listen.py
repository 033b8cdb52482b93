"""``sniproxy-listen``: bind, listen and become a command that takes the socket from there.

For where no systemd, inetd or s6 does it: a container, a first try.
"""

import argparse
import contextlib
import errno
import fcntl
import itertools
import os
import pwd
import re
import signal
import socket
import stat
import sys
import warnings  # noqa: F401 - os.execvp wants it, when --user may not reach Python's files any more
from collections.abc import Sequence

from sniproxy.tools.capabilities import dropper
from sniproxy.tools.command_line import CommandLine
from sniproxy.tools.output import complain

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn."""

_LARGEST_BACKLOG = 2**31 - 1
"""listen(2) takes an int."""

_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+)|(?P<any>\*?)):(?P<port>[0-9]+)"
)
_PORT_DIGITS = 5
_UNIX = "unix:"
_STANDARD_INPUT = 0
_FIRST_LISTEN_FD = 3

_CLIENTS, _BALANCERS, _STATUS = "unknown", "proxy", "status"
"""What sockets are called by what comes to them, as sniproxy understands it."""

_STATUS_MASK = 0o117
"""Umask of status sockets: who may connect sees all, so the owner and the group may (0660)."""

BOUND_BY = "SNIPROXY_BOUND_BY"
"""Variable that tells sniproxy, if it has our process id, that nobody else has the sockets."""

_FAILURE = 1
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127

_OURS = "sniproxy"

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class ListenError(ValueError):
    """An address to listen on, or a user, that can't be used; says why."""


class AddressError(ListenError):
    """What is no address at all."""


def is_address(word: str) -> bool:
    """Say whether a word of the command line is an address rather than the command."""
    return word.startswith(_UNIX) or _ADDRESS.fullmatch(word) is not None


def listening_socket(address: str, backlog: int) -> socket.socket:
    """Bind and listen. Raises ListenError. Numbers only: a static program resolves no names.

    ``127.0.0.1:8443``, ``[::1]:8443``, ``:443`` or ``*:443`` (IPv6 and IPv4), ``unix:PATH``. A file
    at that path makes way if it is a socket on which nobody listens any more.
    """
    if address.startswith(_UNIX):
        path = address.removeprefix(_UNIX)
        if not path:
            raise AddressError(f"{address!a}: expected unix:PATH")
        if _is_dead(path):
            with contextlib.suppress(OSError):  # which the bind is going to tell
                os.unlink(path)
        return _bound(socket.AF_UNIX, path, address, backlog)
    match = _ADDRESS.fullmatch(address)
    if match is None or len(match["port"]) > _PORT_DIGITS or int(match["port"]) > 65535:
        raise AddressError(f"{address!a}: expected ADDRESS:PORT with a port up to 65535")
    port = int(match["port"])
    family = socket.AF_INET if match["v4"] else socket.AF_INET6
    host = match["v4"] or match["v6"] or "::"
    try:
        packed = socket.inet_pton(family, host)
    except OSError:
        raise AddressError(f"{address!a}: {host!a} is no IP address") from None
    if match["any"] is not None and not _has_ipv6():
        complain(f"sniproxy-listen: {address!a}: IPv4 only: there is no IPv6 here")
        family, host = socket.AF_INET, "0.0.0.0"  # noqa: S104 - as we were asked
    return _bound(family, (host, port), address, backlog, takes_both=not any(packed))


def _has_ipv6() -> bool:
    """Say whether IPv6 is known here: not where the kernel was built or booted without
    (ipv6.disable=1), nor where a filter keeps it from us (RestrictAddressFamilies=)."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def _is_dead(path: str) -> bool:
    """Say whether there is a socket on which nobody listens: its program has gone, as we go
    ourselves, without removing it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a queue that is full is somebody's
            return probe.connect_ex(path) == errno.ECONNREFUSED
    except OSError:
        return False


def _bound(
    family: int,
    where: tuple[str, int] | str,
    address: str,
    backlog: int,
    *,
    takes_both: bool = False,
) -> socket.socket:
    listening = None
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
        if family != socket.AF_UNIX:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Only the address of all interfaces takes IPv4 clients as well.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not takes_both)
        listening.bind(where)
        listening.listen(backlog)
    except OSError as error:
        if listening is not None:
            listening.close()
        in_use = "somebody else has it: stop that, or choose another"
        if family == socket.AF_UNIX:
            in_use = "there is such a file already: remove it if nobody listens there"
        hints = {
            errno.EADDRINUSE: in_use,
            errno.EACCES: "a port below 1024 or a protected directory needs more rights",
            errno.EADDRNOTAVAIL: "no interface of this machine has that address",
            errno.EAFNOSUPPORT: "there are no sockets of that kind here",
        }
        hint = hints.get(error.errno or 0, "")
        reason = f"{error.strerror or error}" + (f" ({hint})" if hint else "")
        raise ListenError(f"{address!a}: can't listen: {reason}") from None
    return listening


def pass_on(
    sockets: Sequence[socket.socket],
    *,
    proxy: bool = False,
    status: Sequence[socket.socket] = (),
) -> None:
    """Put one socket at standard input, or several at 3, 4, … by sd_listen_fds(3), and those for
    ``status`` behind them; with ``proxy``, say of each socket that a PROXY header comes first.

    Raises ListenError where the limit of descriptors leaves no room to move them.
    """
    os.environ[BOUND_BY] = str(os.getpid())
    passed = [*sockets, *status]
    # First out of the way of the numbers that they are going to have.
    first_free = _FIRST_LISTEN_FD + len(passed)
    try:
        moved = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, first_free) for one in passed]
    except OSError as error:
        raise ListenError(f"can't pass {len(passed)} sockets on: {error.strerror}") from None
    names = [_BALANCERS if proxy else _CLIENTS] * len(sockets) + [_STATUS] * len(status)
    if len(sockets) == 1:
        os.dup2(moved.pop(0), _STANDARD_INPUT)
        if names.pop(0) == _BALANCERS:
            os.environ["SNIPROXY_ACCEPT_PROXY"] = "1"
    for target, source in enumerate(moved, _FIRST_LISTEN_FD):
        os.dup2(source, target)
    for one in passed:
        one.detach()
    if moved:
        os.environ["LISTEN_FDS"] = str(len(moved))
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDNAMES"] = ":".join(names)


def become(user: str) -> None:
    """Give up all rights but those of ``user``, a name or a number: take what ``User=`` gives.

    That is the user's own group, those groups that list the user, and no capability. A number that
    nobody has is a group's number as well.
    """
    drop_capabilities = dropper()
    try:
        name, uid, gid = _identity(user)
        if name is None:
            os.setgroups([])
        else:
            os.initgroups(name, gid)
        os.setgid(gid)
        os.setuid(uid)
        # setuid(2) leaves the inheritable ones, and all of them to who was not root or has set
        # SECBIT_NO_SETUID_FIXUP.
        if uid:
            drop_capabilities()
    except KeyError:
        raise ListenError(f"--user {user!a}: there is no such user") from None
    except (OverflowError, ValueError):
        raise ListenError(f"--user {user!a}: no user has such a number") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # as 2**32 - 1, which setuid(2) means something else by
            raise ListenError(f"--user {user!a}: no user has such a number") from None
        hint = " (only root may change)" if error.errno == errno.EPERM else ""
        raise ListenError(f"--user {user!a}: {error.strerror}{hint}") from None


def _identity(user: str) -> tuple[str | None, int, int]:
    """Look up a user's name, None where a number has none, and the numbers of user and group.

    Raises KeyError for a name that nobody has.
    """
    if not user.isdecimal():
        entry = pwd.getpwnam(user)
    else:
        try:
            entry = pwd.getpwuid(int(user))
        except KeyError:
            return None, int(user), int(user)
    return entry.pw_name, entry.pw_uid, entry.pw_gid


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise ListenError(f"--directory {directory!a}: {error.strerror}") from None


def _program(command: str) -> str:
    """Say which file ``command`` is, or give it back where ``PATH`` decides.

    ``sniproxy`` is the one that we came with: Debian has another program of that name, which would
    take no socket and become a daemon. It lies beside us, or where the links lead by which we were
    called; the executable is that itself, by whatever name.
    """
    if command != _OURS:
        return command
    us = _file_of(sys.argv[0])
    if us is not None:
        for folder in (os.path.dirname(us), os.path.dirname(os.path.realpath(us))):
            if _is_program(f"{folder}/{_OURS}"):
                return f"{folder}/{_OURS}"
    if getattr(sys, "oxidized", False):
        return us or "/proc/self/exe"
    return command


def _file_of(called: str) -> str | None:
    """Find the file that was called, as a shell or execvp(3) found it: there may be no /proc."""
    folders = [""] if "/" in called else os.get_exec_path()
    for folder in folders:
        try:
            # Absolute: --directory leads elsewhere.
            path = os.path.abspath(os.path.join(folder, called))
        except OSError:
            continue  # nobody knows where we are
        if _is_program(path):
            return path
    return None


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _backlog(text: str) -> int:
    """Read the number of connections that may wait."""
    digits = text if text.isdecimal() and len(text) <= len(str(_LARGEST_BACKLOG)) else "0"
    if not 1 <= int(digits) <= _LARGEST_BACKLOG:
        raise argparse.ArgumentTypeError(f"{text!a} is no number from 1 to {_LARGEST_BACKLOG}")
    return int(digits)


def main(arguments: Sequence[str]) -> int:
    parser = CommandLine(
        "sniproxy-listen",
        failure=_FAILURE,
        usage="sniproxy-listen [OPTION…] ADDRESS:PORT… [--] COMMAND [ARGUMENT…]",
        description="Bind, listen, and run COMMAND with the socket as its standard input; several "
        "sockets, and those for status, are passed as LISTEN_FDS.",
        epilog="Manual: man 8 sniproxy-listen. Addresses: 127.0.0.1:8443, [::1]:8443, :443 (IPv6 "
        "and IPv4), unix:PATH.",
    )
    parser.add_argument(
        "--backlog",
        type=_backlog,
        default=BACKLOG,
        metavar="NUMBER",
        help="connections that may wait to be accepted (default: %(default)s)",
    )
    parser.add_argument("--directory", help="run COMMAND in this directory, entered after binding")
    parser.add_argument(
        "--proxy",
        action="store_true",
        help="clients come through a balancer that sends a PROXY header: sniproxy requires it",
    )
    parser.add_argument(
        "--status",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="where sniproxy shows what it does, to whoever connects: unix:PATH (mode 0660) or "
        "ADDRESS:PORT; may be repeated",
    )
    parser.add_argument("--user", help="run COMMAND as this user, after binding")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    addresses = list(itertools.takewhile(is_address, options.words))
    words = options.words[len(addresses) :]
    if words[:1] == ["--"]:
        words.pop(0)
    elif words and ":" in words[0] and "/" not in words[0]:
        # Meant as an address, rather than as a command.
        parser.error(
            f"{words[0]!a}: expected numbers only, such as 127.0.0.1:8443 or [::1]:8443: names are "
            "not resolved (a COMMAND that is called so goes after --)"
        )
    if not addresses:
        parser.error("no ADDRESS:PORT to listen on, such as 127.0.0.1:8443")
    if not words:
        parser.error("no COMMAND to run, such as sniproxy")
    try:
        program = _program(words[0])
        if os.path.basename(program) == _OURS:
            # SIGUSR2 runs the file anew that this names: PATH might lead to another one.
            words[0] = program
        sockets = [listening_socket(address, options.backlog) for address in addresses]
        mask = os.umask(_STATUS_MASK)
        status = [listening_socket(address, options.backlog) for address in options.status]
        os.umask(mask)
        if options.directory is not None:
            _enter(options.directory)
        if options.user is not None:
            become(options.user)
        pass_on(sockets, proxy=options.proxy, status=status)
    except AddressError as error:
        parser.error(str(error))
    except ListenError as error:
        complain(f"sniproxy-listen: {error}")
        return _FAILURE
    for ignored in _IGNORED_BY_PYTHON:  # and what is ignored stays so for the command
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(program, words)
    except (FileNotFoundError, ValueError):  # the latter where the name is empty
        complain(f"sniproxy-listen: {words[0]!a}: no such command")
        return _NOT_FOUND
    except OSError as error:
        complain(f"sniproxy-listen: {words[0]!a}: {error.strerror}")
        return _NOT_EXECUTABLE
