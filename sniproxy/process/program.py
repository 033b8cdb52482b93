"""The program that we are: the command that runs it anew, and whether its file may be run."""

import os
import stat
import sys
from collections.abc import Sequence


def own_command() -> list[str] | None:
    """Give the command that we were started by, with the absolute path of its file; None where that
    is not known.

    ``sys.argv[0]`` is a path, or was looked for in PATH (execvp(3)).
    """
    if not getattr(sys, "frozen", False):
        command = [sys.executable, *sys.orig_argv[1:]]
    else:
        command = list(sys.argv)
        if "/" not in command[0]:
            paths = [os.path.join(folder, command[0]) for folder in os.get_exec_path()]
            found = (path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK))
            command[0] = next(found, "")
    return command if os.path.isabs(command[0]) else None


def why_not_to_run(command: Sequence[str]) -> str | None:
    """Say who else could have put another file where a command's is; None if only root and we."""
    paths = [command[0]]
    if not getattr(sys, "frozen", False):
        paths.append(__file__)
    return next(filter(None, map(_others, paths)), None)


def _others(path: str) -> str | None:
    """Follow an absolute path, links and all; say where others than root and we may change what is
    there next. Raises OSError."""
    os.stat(path)  # so that the links are no circle
    here = "/"
    for name in path.split("/"):
        there = os.path.join(here, name)
        problem = _changeable(there)
        if problem is None and os.path.islink(there):
            problem = _others(os.path.join(here, os.readlink(there)))
        if problem is not None:
            return problem
        here = os.path.realpath(there)
    return None


def _changeable(path: str) -> str | None:
    state = os.lstat(path)
    if state.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to another user"
    if stat.S_ISLNK(state.st_mode):
        return None
    # In a sticky directory nobody can replace what is another's.
    sticky = stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        return f"{path} may be written to by others than its owner"
    return None
