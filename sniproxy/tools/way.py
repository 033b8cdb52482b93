"""Ways: where a path leads, step by step, as the kernel looks it up.

path_resolution(7) is done by hand here, because only who goes the way himself knows where it ended
and which link led there. Below a root directory it is done as openat2(2) does by RESOLVE_IN_ROOT:
nothing leads out of it, just as in a chroot(2). Nothing is opened for more than its place (O_PATH).
How much work a way may be is decided here.
"""

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Iterator, Sequence

MOST_LINKS = 40
"""Symbolic links that the kernel follows in one path, path_resolution(7)."""

MOST_STEPS = 512
"""Names that are looked up for one entry of the hosts directory, in all its paths. Ways that people
make take some ten; 40 links of 4,095 bytes can have 80,000 names in them."""

_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class MazeError(Exception):
    """An entry has taken more than ``MOST_STEPS``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link on a way. ``path``: the names below the root, none of them a link."""

    path: tuple[str, ...]
    target: str


@dataclasses.dataclass(slots=True)
class Way:
    """How far a path leads.

    ``error`` is the errno that ends it, then ``missing`` is the name that could not be looked up in
    ``path``; else ``path`` is what was found, ``mode``, ``owner`` (a user's number) and
    ``identity`` (device and inode) are its own, and ``directory`` is the descriptor of what it lies
    in. ``link`` is the one whose target was followed at the end, if it was one. ``turned``: without
    the root, it would lead elsewhere.
    """

    directory: int
    path: list[str] = dataclasses.field(default_factory=list)
    links: list[Link] = dataclasses.field(default_factory=list)
    link: Link | None = None
    turned: bool = False
    missing: str = ""
    error: int | None = None
    mode: int = 0
    owner: int = 0
    identity: tuple[int, int] = (0, 0)


class Ground:
    """The directory in which ways begin, the working directory, and the root that they can't leave.

    Raises OSError where one of them can't be entered, ValueError where the first does not lie in
    the second. What leads to the working directory may be closed to us: we are there.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        working = os.getcwd()
        if os.path.commonpath((self.root, working)) != self.root:
            raise ValueError(f"{working!a} does not lie in the root directory {self.root!a}")
        self.top = [name for name in os.path.relpath(working, self.root).split("/") if name != "."]
        self._root = os.open("." if self.root == working else self.root, _DIRECTORY)
        try:
            self._start = os.open(".", _DIRECTORY)
        except OSError:
            os.close(self._root)
            raise
        self._is_jail = not os.path.samestat(os.fstat(self._root), os.stat("/"))
        self._steps = 0

    def close(self) -> None:
        os.close(self._root)
        os.close(self._start)

    def begin(self) -> None:
        """Count the steps of another entry."""
        self._steps = 0

    def shown_path(self, path: Sequence[str]) -> str:
        """Write a path below the root as it is from the hosts directory, if it lies in there."""
        depth = len(self.top)
        if list(path[:depth]) == self.top:
            return "/".join(path[depth:]) or "."
        return "/" + "/".join(path)

    @contextlib.contextmanager
    def follow(self, path: str) -> Iterator[Way]:
        """Go as far as a path leads. Raises MazeError; what the kernel says is in the Way."""
        way = Way(os.dup(self._start), self.top.copy())
        try:
            try:
                self._go(way, _names(path))
            except OSError as error:
                way.error = error.errno
            yield way
        finally:
            os.close(way.directory)

    def _go(self, way: Way, rest: list[str]) -> None:
        """Take the names of ``rest``, whose last is the first to take, one after the other."""
        followed: list[tuple[int, Link]] = []  # each with the number of names behind its target
        while rest:
            self._steps += 1
            if self._steps + len(rest) > MOST_STEPS:
                raise MazeError
            name = way.missing = rest.pop()
            while followed and len(rest) < followed[-1][0]:
                followed.pop()
            way.link = followed[-1][1] if followed else None
            if name == ".." and self._is_root(way.directory):
                way.turned = self._is_jail
                found = os.open(".", _PLACE, dir_fd=way.directory)
            else:
                found = os.open(name, _PLACE, dir_fd=way.directory)
            try:
                status = os.fstat(found)
                if stat.S_ISLNK(status.st_mode):
                    link = Link((*way.path, name), os.readlink("", dir_fd=found))
                    way.links.append(link)
                    if len(way.links) > MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    followed.append((len(rest), link))
                    if link.target.startswith("/"):
                        os.dup2(self._root, way.directory, inheritable=False)
                        way.path.clear()
                        way.turned |= self._is_jail
                    rest += _names(link.target)
                    continue
                if name == "..":
                    del way.path[-1:]
                elif name != ".":
                    way.path.append(name)
                way.mode, way.owner = status.st_mode, status.st_uid
                way.identity = status.st_dev, status.st_ino
                if rest:
                    os.dup2(found, way.directory, inheritable=False)
            finally:
                os.close(found)
        way.missing = ""

    def _is_root(self, directory: int) -> bool:
        return os.path.samestat(os.fstat(directory), os.fstat(self._root))


def _names(path: str) -> list[str]:
    """Take a path apart, the last name first; a slash at its end asks for a directory."""
    *names, last = path.split("/")
    return [last or ".", *(name for name in reversed(names) if name)]
