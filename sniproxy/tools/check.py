"""``sniproxy-check``: what sniproxy makes of each entry of a hosts directory.

It asks the same questions as the proxy, by the same code (``resolver``) or, where the proxy has
another root directory, by ``way``, and as the user who runs it: run it as the proxy's user to see
what that one may reach. Each backend is connected to once, without a byte. The work for an entry is
bounded whatever it holds, and what is wrong with one entry is never more than that one's line.
"""

import contextlib
import errno
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence

from sniproxy.resolver import naming
from sniproxy.resolver.hosts import Hosts
from sniproxy.tools.command_line import CommandLine
from sniproxy.tools.entries import Kind, hosts_by_parent, kind_of, why_never
from sniproxy.tools.knock import connect, released
from sniproxy.tools.listen import ListenError, become
from sniproxy.tools.ourselves import file_identity, own_sockets
from sniproxy.tools.output import complain, escaped, shown, tell
from sniproxy.tools.report import Finding, as_json, brief, table
from sniproxy.tools.unit import service_settings
from sniproxy.tools.way import MOST_LINKS, MOST_STEPS, Ground, Link, MazeError, Way

_NOT_HOSTS = frozenset({"dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"})
"""Directories that a jail holds besides hosts; passed over where there is no socket in them."""

_COMMANDS = frozenset(
    {"sniproxy", "sniproxy-check", "sniproxy-hostname", "sniproxy-listen", "sniproxy-status"}
)
"""The executable and the links to it in a jail; passed over where they are no directories."""

_LEFT_LYING = re.compile(
    r"\..*|lost\+found|.*~|#.*#"
    r"|(?i:.*\.(?:bak|backup|old|orig|rej|save|sw[a-p]|tmp|dpkg-\w+|rpm\w+|ucf-\w+))",
    re.DOTALL,
)
"""What file systems, administrators, editors and packagers leave in a directory."""

_PAPERS = re.compile(r"(?i:.*\.(?:txt|md|rst|html?|log|conf|cfg|ini|json|ya?ml|sh|py))", re.DOTALL)
"""Files, not directories, that nobody means to be hosts, though hosts can be called so."""

_PEER_CREDENTIALS = struct.Struct("iII")

_WRONG_TYPE = {errno.EPROTOTYPE, errno.ENOTSOCK}

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_FILES = (naming.SEND_PROXY_V2, naming.SEND_PROXY_V1, naming.ACME_SOCKET, naming.WAIT_FOR_BACKEND)

_ABSOLUTE = "{} is an absolute link: it leads elsewhere inside a chroot, use {}"

_OPEN = stat.S_IROTH | stat.S_IXOTH
"""The right of others to read a directory and to enter it: both together let them hold its lock."""

CANNOT_TELL = 2
"""Exit status where it is not known whether all is well, a usage error among others."""


class Check:
    """A look at the entries of the working directory.

    ``root`` is the root directory that the proxy has, None where nobody has said so: then it is
    ``/``, and links that would lead elsewhere in a chroot are spoken of. ``mapped`` are the users
    that it can tell apart, None for all. ``all_well`` is true as long as no entry has a problem.
    Raises OSError where the root can't be entered, ValueError where we are not in it.
    """

    def __init__(self, root: str | None, mapped: Collection[int] | None = None) -> None:
        self._mapped = mapped
        self._ground = Ground(root or "/")
        self._own = own_sockets()
        self._warns_of_links = root is None and bool(self._ground.top)
        self.root = self._ground.root
        self.all_well = True

    def findings(self, names: Collection[str]) -> Iterator[Finding]:
        """Look at these entries, which are all that there are, one after the other.

        Raises OSError where the directory can't be entered.
        """
        self._below = hosts_by_parent(names)
        with contextlib.closing(self._ground), contextlib.closing(Hosts()) as hosts:
            for name in names:
                os.fchdir(hosts.fileno())
                if not _passed_over(name):
                    finding = self._finding(name, hosts)
                    self.all_well = self.all_well and not finding.problems
                    yield finding

    def _finding(self, name: str, hosts: Hosts) -> Finding:
        finding = Finding(name)
        self._ground.begin()
        try:
            self._examine(finding, hosts)
        except MazeError:
            finding.problems.append(
                f"its links lead through more than {MOST_STEPS} names: they are not followed"
            )
        except Exception as error:  # whatever it is, the others have their lines
            words = f"{type(error).__name__}: {escaped(str(error))}"
            finding.problems.append(f"can't be looked at: {words}")
        return finding

    def _examine(self, finding: Finding, hosts: Hosts) -> None:
        finding.kind = kind_of(finding.name)
        finding.asked_for = finding.kind is not None
        if finding.kind is None:
            finding.problems.append(why_never(finding.name))
        with self._ground.follow(finding.name) as way:
            links = len(way.links)
            no_host = _no_host(finding, way)
            if no_host:
                finding.is_host, finding.kind = False, None
                finding.problems.clear()
                finding.notes.append(no_host)
                return
            if way.error is None and not stat.S_ISDIR(way.mode):
                self._examine_links(finding, way)
                finding.problems.append(
                    "is not a directory: a host is a directory with a tls-socket"
                )
                return
            if hosts.shared and way.error is None and way.mode & _OPEN == _OPEN:
                finding.notes.append(
                    "any user can have look-ups in it wait, by reading it: chmod o-r"
                )
            if way.error is None:
                self._examine_precedence(finding, way, hosts)
        with self._ground.follow(f"{finding.name}/{naming.SOCKET}") as way:
            self._examine_links(finding, way)
            self._examine_socket(finding, way, hosts)
        self._examine_files(finding, links)

    def _examine_precedence(self, finding: Finding, way: Way, hosts: Hosts) -> None:
        """See what an entry takes from others, and others from it; and whether it counts at all."""
        if finding.kind is Kind.HOST:
            finding.shadows = _directory(hosts.fallback(finding.name))
            return
        if finding.kind is Kind.WILDCARD:
            finding.shadows = _directory(hosts.fallback(naming.DEFAULT))
            # What is no directory leaves its name to the wildcard.
            winners = self._below.get(finding.name.removeprefix(naming.WILDCARD), [])
            finding.shadowed_by = list(filter(os.path.isdir, winners))
            some = [shown(name) for name in finding.shadowed_by[:3]]
            if len(finding.shadowed_by) > len(some):
                some.append(f"{len(finding.shadowed_by) - len(some)} others")
            if some:
                finding.notes.append(f"its place is taken for {', '.join(some)}")
        if finding.kind is not None:
            entry = os.lstat(finding.name)
            if stat.S_ISLNK(entry.st_mode):
                self._examine_trust(finding, "the link", entry.st_mode, entry.st_uid, hosts)
            elif entry.st_dev != os.stat(".").st_dev:
                finding.problems.append("is passed over: another file system is mounted there")
            self._examine_trust(finding, "it", way.mode, way.owner, hosts)

    def _examine_trust(
        self, finding: Finding, what: str, mode: int, owner: int, hosts: Hosts
    ) -> None:
        """See whether an entry, or its link, may serve many."""
        doubt = hosts.doubt(mode, owner)
        if doubt is None and self._mapped is not None and owner not in self._mapped:
            doubt = "whom the unit can't tell from others (PrivateUsers=): give it to root"
        if doubt is not None:
            says = f"is passed over: {what} belongs to {_user(owner)}, {doubt}"
            finding.problems.append(says)

    def _examine_links(self, finding: Finding, way: Way) -> None:
        """Speak of links that in a chroot would lead elsewhere, wherever on the way they are."""
        if not self._warns_of_links:
            return
        absolute = next((link for link in way.links if link.target.startswith("/")), None)
        if absolute is not None:
            where, relative = self._shown(absolute.path), self._relative(absolute)
            problem = _ABSOLUTE.format(where, relative)
            if relative is None:
                problem = (
                    f"{where} is an absolute link out of the hosts directory: it leads nowhere "
                    "inside a chroot, so move the socket; without a chroot, look with --root /"
                )
            if problem not in finding.problems:  # of a host's directory: on the way to each file
                finding.problems.append(problem)
            return
        end = [*way.path, way.missing] if way.error else way.path
        if end[: len(self._ground.top)] != self._ground.top:
            note = f"a link leads out of the hosts directory: {self._shown(end)}"
            if note not in finding.notes:
                finding.notes.append(note)

    def _relative(self, link: Link) -> str | None:
        """Give the relative link that leads where an absolute one seems to, if one can."""
        limit = self.root
        if self._warns_of_links:
            limit = os.path.join(limit, *self._ground.top)
        target = os.path.normpath(link.target)
        if os.path.commonpath((limit, target)) != limit:
            return None
        return brief(os.path.relpath(target, os.path.join(self.root, *link.path[:-1])))

    def _examine_socket(self, finding: Finding, way: Way, hosts: Hosts) -> None:
        backend = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with released(backend):
            try:
                connect(finding.name, way, hosts, backend)
                finding.accepts = True
                size = _PEER_CREDENTIALS.size
                credentials = backend.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
                finding.backend_pid, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
                finding.backend_user = _user(uid)
            except BlockingIOError:
                finding.accepts = True
                finding.notes.append("the accept queue is full: the backend is busy or hangs")
            except OSError as error:
                finding.problems.append(self._reason(finding.name, way, error))
        if finding.accepts and file_identity(*way.identity) in self._own:
            finding.problems.append("leads back to sniproxy itself, which listens there")

    def _reason(self, name: str, way: Way, error: OSError) -> str:
        """Say what is wrong with a socket that could not be connected to."""
        if way.error is not None:
            return self._lost(name, way)
        if not stat.S_ISSOCK(way.mode):
            kind = _KINDS.get(stat.S_IFMT(way.mode), "a file")
            return f"tls-socket is no socket: it is {kind}, and the backend must make it"
        if error.errno == errno.ECONNREFUSED:
            return "nothing listens on tls-socket: is the backend running?"
        if error.errno in _WRONG_TYPE:
            return "tls-socket is a socket of the wrong type: a stream socket is expected"
        if error.errno in {errno.EACCES, errno.EPERM}:
            denied = f"permission denied to uid {os.geteuid()}"
            if os.access(way.path[-1], os.W_OK, dir_fd=way.directory):
                return f"{denied}, though modes allow it: by fs.protected_symlinks, for instance"
            where = self._shown(way.path)
            return f"{denied}: it lacks w on {naming.SOCKET if not way.links else where}"
        return f"can't connect: {error.strerror or error}"

    def _lost(self, name: str, way: Way) -> str:
        """Say where a way ends before its end."""
        where = self._shown(way.path)
        if way.error == errno.ENOENT:
            if way.link is not None:
                return self._dangling(way, way.link)
            linked = f" in {where}: is its backend running?" if where != shown(name) else ""
            return f"there is no {brief(way.missing)}{linked}"
        if way.error == errno.EACCES:
            return f"permission denied to uid {os.geteuid()}: it lacks x on {where}"
        if way.error == errno.ELOOP:
            return f"the links lead in a circle, or are more than {MOST_LINKS}"
        if way.error == errno.ENOTDIR:
            return f"{where} is not a directory"
        return f"can't be looked up: {os.strerror(way.error or 0)}"

    def _dangling(self, way: Way, link: Link) -> str:
        where, missing = self._shown(link.path), self._shown([*way.path, way.missing])
        if not way.turned:
            return f"{where} is a dangling link: there is no {missing}"
        relative = self._relative(link) if link.target.startswith("/") else None
        if relative is not None:
            return _ABSOLUTE.format(where, relative)
        missing = brief("/" + "/".join([*way.path, way.missing]))
        return (
            f"{where} is a dangling link: there is no {missing} in the root directory "
            f"{brief(self.root)}, and no link leads out of it"
        )

    def _examine_files(self, finding: Finding, links: int) -> None:
        """See what other files it has; ``links`` of the way lead to its directory already."""
        there = []
        for name in _FILES:
            with self._ground.follow(f"{finding.name}/{name}") as way:
                if way.error is None:
                    there.append(name)
                    if name == naming.ACME_SOCKET and not stat.S_ISSOCK(way.mode):
                        finding.problems.append(f"{name} is no socket: validations are refused")
                if len(way.links) == links:
                    continue
                self._examine_links(finding, way)
                if way.error == errno.ENOENT and way.turned and way.link is not None:
                    finding.problems.append(f"{self._dangling(way, way.link)}: it counts as absent")
                elif way.error == errno.ENOENT:
                    finding.notes.append(f"{name} is a dangling link: it counts as absent")
                elif way.error is not None:
                    reason = os.strerror(way.error)
                    finding.notes.append(f"{name} counts as absent: {reason}")
        headers = [name.removeprefix("send-proxy-") for name in there if name in _FILES[:2]]
        finding.proxy_header = headers[0] if headers else "none"
        finding.acme_socket = naming.ACME_SOCKET in there
        finding.waits_for_backend = naming.WAIT_FOR_BACKEND in there
        if len(headers) > 1:
            finding.notes.append("send-proxy-v1 is there too: send-proxy-v2 wins")

    def _shown(self, path: Sequence[str]) -> str:
        return brief(self._ground.shown_path(path))


def _passed_over(name: str) -> bool:
    if name in _COMMANDS:
        return not os.path.isdir(name)
    return name in _NOT_HOSTS and not os.path.lexists(f"{name}/{naming.SOCKET}")


def _no_host(finding: Finding, way: Way) -> str | None:
    """Say why nobody means this entry to be a host, if nobody does."""
    if way.error == errno.ENOENT and not way.links:
        return "has been removed meanwhile"
    is_file = way.error is None and stat.S_ISREG(way.mode)
    if is_file and (not finding.asked_for or _PAPERS.fullmatch(finding.name)):
        return "is a file, no host: passed over"
    if not _LEFT_LYING.fullmatch(finding.name):
        return None
    if finding.asked_for and os.path.lexists(f"{finding.name}/{naming.SOCKET}"):
        return None
    return "is no host: passed over"


def _directory(entry: str | None) -> str | None:
    return None if entry is None else naming.directory_name(entry)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _warn_of_readers(mode: int) -> None:
    """Warn of a hosts directory that others may add to and everybody may read."""
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and mode & stat.S_IROTH:
        better = 0o1773 if mode & stat.S_IWOTH else 0o1771
        complain(
            "sniproxy-check: warning: any user can have all look-ups wait, by reading this "
            f"directory: chmod {better:o}"
        )


def _unit_root(unit: Mapping[str, str]) -> str | None:
    """Give the root directory of a unit, if the working directory lies in it."""
    root = unit.get("RootDirectory", "")
    if not os.path.isabs(root):
        return None
    real = os.path.realpath(root)
    return real if os.path.commonpath((real, os.getcwd())) == real else None


def _mapped_users(unit: Mapping[str, str]) -> set[int] | None:
    """List the users that a unit can tell apart, None for all (PrivateUsers=, systemd.exec(5))."""
    if unit.get("PrivateUsers", "") not in ("1", "yes", "y", "true", "t", "on", "self"):
        return None
    user = unit.get("User", "root")
    with contextlib.suppress(KeyError):
        return {0, int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid}
    return {0}


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
    parser.add_argument(
        "--root",
        metavar="ROOT",
        help="the proxy's root directory, which no link leaves (default: that of the installed "
        "unit, if DIR lies in it)",
    )
    parser.add_argument("--user", help="look as this user, the proxy's (root only)")
    parser.add_argument(
        "directory", nargs="?", default=".", metavar="DIR", help="default: the working directory"
    )
    options = parser.parse_args(arguments)
    try:
        root = None if options.root is None else os.path.realpath(options.root)
        os.chdir(options.directory)
        names = sorted(os.listdir("."))  # before we are that user, who need not be able to
        _warn_of_readers(os.stat(".").st_mode)
        unit = service_settings()
        root_of_unit = _unit_root(unit)
        if root is None:
            root = root_of_unit
        check = Check(root, _mapped_users(unit) if root and root == root_of_unit else None)
        if options.user is not None:
            _load_everything()
            become(options.user)
        results = check.findings(names)
        expected = (name for name in names if name not in _COMMANDS | _NOT_HOSTS)
        lines = as_json(results) if options.json else table(results, expected, check.root)
        for line in lines:
            if not tell(line):
                return CANNOT_TELL
    except (ListenError, ValueError) as error:
        complain(f"sniproxy-check: {error}")
        return CANNOT_TELL
    except OSError as error:
        user = f"uid {os.geteuid()} can't look into it"
        complain(f"sniproxy-check: {options.directory!a}: {user}: {error.strerror}")
        return CANNOT_TELL
    return 0 if check.all_well else 1
