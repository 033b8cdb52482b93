"""``sniproxy-check``: what sniproxy makes of each entry of a hosts directory.

It asks the same questions as the proxy, by the same code (``resolver``), as the user who runs it:
run it as the proxy's user to see what that one may reach. Each backend is connected to once,
without a byte.
"""

import dataclasses
import errno
import json
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence

from sniproxy import flavour
from sniproxy.parser.host_name import canonical
from sniproxy.resolver import naming
from sniproxy.resolver.hosts import Hosts
from sniproxy.tools.command_line import CommandLine
from sniproxy.tools.listen import ListenError, become
from sniproxy.tools.output import complain, shown, tell

_HASH = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
"""32 bytes in unpadded URL-safe base64."""

_NOT_HOSTS = frozenset({"dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"})
"""Directories that a jail holds besides hosts; passed over where there is no socket in them."""

_COMMANDS = frozenset({"sniproxy", "sniproxy-check", "sniproxy-hostname", "sniproxy-listen"})
"""The executable and the links to it in a jail; passed over where they are no directories."""

_PEER_CREDENTIALS = struct.Struct("3i")

_WRONG_TYPE = {errno.EPROTOTYPE, errno.ENOTSOCK}

CANNOT_TELL = 2
"""Exit status where it is not known whether all is well, a usage error among others."""

_MOST_LINKS = 40
"""Symbolic links that the kernel follows in one path, path_resolution(7)."""


@dataclasses.dataclass(slots=True)
class Finding:
    """What is known of one entry. ``problems`` make it not well, ``notes`` do not."""

    name: str
    asked_for: bool = False
    accepts: bool = False
    backend_user: str | None = None
    backend_pid: int | None = None
    proxy_header: str = "none"
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def findings(names: Iterable[str]) -> list[Finding]:
    """Look at these entries of the working directory, in the order of their names.

    Raises OSError where the directory can't be entered.
    """
    hosts = Hosts()
    try:
        return [_examine(name, hosts) for name in sorted(names) if not _passed_over(name)]
    finally:
        hosts.close()


def _passed_over(name: str) -> bool:
    if name in _COMMANDS:
        return not os.path.isdir(name)
    return name in _NOT_HOSTS and not os.path.lexists(f"{name}/{naming.SOCKET}")


def _examine(name: str, hosts: Hosts) -> Finding:
    finding = Finding(name)
    _examine_name(finding)
    _examine_links(finding, f"{name}/{naming.SOCKET}")
    try:
        is_directory = stat.S_ISDIR(os.stat(name).st_mode)
    except OSError:
        is_directory = True  # what is wrong with it is told by the connect
    if not is_directory:
        finding.problems.append("is not a directory: a host is a directory with a tls-socket")
        return finding
    _examine_socket(finding, hosts)
    version = hosts.proxy_version(name)
    finding.proxy_header = f"v{version}" if version else "none"
    if version == 2 and os.access(f"{name}/{naming.SEND_PROXY_V1}", os.F_OK):
        finding.notes.append("send-proxy-v1 is there too: send-proxy-v2 wins")
    for header in (naming.SEND_PROXY_V1, naming.SEND_PROXY_V2):
        path = f"{name}/{header}"
        if not os.path.islink(path):
            continue
        _examine_links(finding, path)
        if not os.path.exists(path):
            finding.notes.append(f"{header} is a dangling link: it counts as absent")
    return finding


def _examine_name(finding: Finding) -> None:
    """Say whether a client can ever ask for this entry."""
    name = finding.name
    if flavour.HASHED:
        finding.asked_for = _HASH.fullmatch(name) is not None
        if not finding.asked_for:
            finding.problems.append(
                "is not the hash of a host name: this is the hashed flavour, "
                "sniproxy-hostname prints the name to use"
            )
        return
    finding.asked_for = canonical(os.fsencode(name)) == name
    if finding.asked_for:
        return
    from sniproxy.tools.hostname import InvalidNameError, to_ascii  # noqa: PLC0415

    try:
        finding.problems.append(f"is not canonical: rename it to {to_ascii(name)}")
    except (InvalidNameError, UnicodeError):
        finding.problems.append("can never be asked for: it is no host name")


def _examine_links(finding: Finding, path: str) -> None:
    """Look at the symbolic links that lead to a file, wherever on the way they are."""
    top = end = os.getcwd()
    if top == "/":
        return  # in a jail no link leads out of it
    for link, target, where in _links(top, path):
        end = where
        if os.path.isabs(target):
            relative = os.path.relpath(target, os.path.dirname(link))
            problem = (
                f"{shown(os.path.relpath(link, top))} is an absolute link: it leads elsewhere "
                f"inside a chroot, use {shown(relative)}"
            )
            if problem not in finding.problems:  # of a host's directory: on the way to each file
                finding.problems.append(problem)
            return
    if os.path.commonpath((top, end)) != top:
        finding.notes.append(f"a link leads out of the hosts directory: {shown(end)}")


def _links(top: str, path: str) -> Iterator[tuple[str, str, str]]:
    """Resolve ``path`` below ``top`` as path_resolution(7) does, as far as it can be read.

    Gives each link's own path, its target, and where it leads to. No further than an absolute one.
    """
    here, rest, count = top, path.split("/"), 0
    while rest and count < _MOST_LINKS:
        name = rest.pop(0)
        there = os.path.normpath(os.path.join(here, name))
        try:
            # By a relative path: what leads to the hosts directory may be closed to the user.
            target = os.readlink(os.path.relpath(there, top))
        except OSError:
            here = there
            continue
        count += 1
        yield there, target, os.path.normpath(os.path.join(here, target))
        rest = target.split("/") + rest


def _examine_socket(finding: Finding, hosts: Hosts) -> None:
    path = f"{finding.name}/{naming.SOCKET}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as backend:
        try:
            hosts.connect(finding.name, backend)
        except BlockingIOError:
            finding.accepts = True
            finding.notes.append("the accept queue is full: the backend is busy or hangs")
            return
        except OSError as error:
            finding.problems.append(_reason(path, error))
            return
        finding.accepts = True
        size = _PEER_CREDENTIALS.size
        credentials = backend.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        finding.backend_pid, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
        try:
            finding.backend_user = pwd.getpwuid(uid).pw_name
        except KeyError:
            finding.backend_user = str(uid)


def _reason(path: str, error: OSError) -> str:
    """Say what is wrong with a socket that could not be connected to."""
    directory = os.path.dirname(path)
    if error.errno == errno.ECONNREFUSED:
        try:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                return "tls-socket is no socket: the backend must make it"
        except OSError:
            pass
        return "nothing listens on tls-socket: is the backend running?"
    if error.errno in _WRONG_TYPE:
        return "tls-socket is a socket of the wrong type: a stream socket is expected"
    if error.errno == errno.ENOENT:
        for link in (directory, path):
            if os.path.islink(link):
                return f"{shown(os.path.basename(link))} is a dangling link"
        return "there is no tls-socket"
    if error.errno in {errno.EACCES, errno.EPERM}:
        missing = "something on the way that its links lead"
        if not os.access(directory, os.X_OK):
            missing = f"x on {shown(directory)}"
        elif not os.access(path, os.W_OK):
            missing = f"w on {naming.SOCKET}"
        return f"permission denied to uid {os.geteuid()}: it lacks {missing}"
    if error.errno == errno.ELOOP:
        return "the links lead in a circle"
    return f"can't connect: {error.strerror or error}"


def _table(results: Sequence[Finding]) -> str:
    width = max((len(shown(result.name)) for result in results), default=0)
    lines = []
    for result in results:
        state = "ok  " if not result.problems else "FAIL"
        words = []
        if result.accepts:
            who = result.backend_user or "a busy backend"
            words.append(f"accepts as {who}, PROXY header {result.proxy_header}")
        words += result.problems + [f"note: {note}" for note in result.notes]
        lines.append(f"{state} {shown(result.name):{width}}  {'; '.join(words)}")
    well = sum(not result.problems for result in results)
    lines.append(f"{len(results)} hosts, {well} well, {len(results) - well} not")
    return "\n".join(lines)


def _json(results: Sequence[Finding]) -> str:
    """Write what programs read: names as in the table, since JSON has no bytes."""
    objects = [dataclasses.asdict(result) | {"name": shown(result.name)} for result in results]
    return json.dumps(objects, indent=2)


def _load_everything() -> None:
    """Import what is otherwise imported when it is needed: that user may not reach our files."""
    from sniproxy.tools.hostname import to_ascii  # noqa: PLC0415

    for name in ("b\u00fccher", "\u0645\u062b\u0627\u0644", "\u0915\u094d\u200d\u0937"):
        to_ascii(name)


def main(arguments: Sequence[str]) -> int:
    parser = CommandLine(
        "sniproxy-check",
        failure=CANNOT_TELL,
        description="Say for each entry of a hosts directory whether sniproxy can serve it.",
        epilog="Manual: man 8 sniproxy-check. Exit status: 0 if all is well, 1 if not, 2 if it "
        "can't tell.",
    )
    parser.add_argument("--json", action="store_true", help="print an array of objects instead")
    parser.add_argument("--user", help="look as this user, the proxy's (root only)")
    parser.add_argument(
        "directory", nargs="?", default=".", metavar="DIR", help="default: the working directory"
    )
    options = parser.parse_args(arguments)
    try:
        os.chdir(options.directory)
        names = os.listdir(".")  # before we are that user, who need not be able to
        if options.user is not None:
            _load_everything()
            become(options.user)
        results = findings(names)
    except ListenError as error:
        complain(f"sniproxy-check: {error}")
        return CANNOT_TELL
    except OSError as error:
        user = f"uid {os.geteuid()} can't look into it"
        complain(f"sniproxy-check: {options.directory!a}: {user}: {error.strerror}")
        return CANNOT_TELL
    if not tell((_json(results) if options.json else _table(results)) + "\n"):
        return CANNOT_TELL
    return 1 if any(result.problems for result in results) else 0
