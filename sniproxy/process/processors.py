"""Processors: how many of them this process may use.

What is offered is what sched_getaffinity(2) says, cut down to the quota of the control groups that
we are in (``CPUQuota=``, ``docker run --cpus``), since more workers than that would only take turns
in being stopped by the kernel.
"""

import math
import os
import re
import stat

_OWN_GROUP = "/proc/self/cgroup"
_GROUPS = "/sys/fs/cgroup"
_LARGEST = 4096
"""Bytes of these files that are read: they hold a line or a few."""


def usable(hosts: int) -> int:
    """Count the CPUs that we may use, at least 1: the affinity, and the quota rounded up."""
    count = len(os.sched_getaffinity(0))
    # In a jail the hosts directory is the root itself, and what is called /proc and /sys there
    # may be anybody's.
    in_jail = os.path.samestat(os.stat("/"), os.fstat(hosts))
    limit = None if in_jail else quota()
    return count if limit is None else max(1, min(count, math.ceil(limit)))


def quota(own_group: str = _OWN_GROUP, groups: str = _GROUPS) -> float | None:
    """Give the CPUs' worth of time that our control groups allow, None where nothing limits it.

    A group's limit holds for all below it, so each one up to the root has its say (cgroups(7),
    ``cpu.max``). Only the unified hierarchy is looked at.
    """
    own = re.search("^0::(.*)$", _read(own_group), re.MULTILINE)
    if own is None:
        return None
    path = own[1].strip("/")
    limits = [_limit(_read(os.path.join(groups, "cpu.max")))]
    while path:
        limits.append(_limit(_read(os.path.join(groups, path, "cpu.max"))))
        path = os.path.dirname(path)
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(text: str) -> float | None:
    """Read ``$MAX $PERIOD``, both in microseconds."""
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None  # "max" among others
    try:
        return int(words[0]) / int(words[1])
    except (ValueError, ArithmeticError):
        return None


def _read(path: str) -> str:
    """Read a small file of the kernel's; nothing where it is missing or is something else."""
    try:
        # What is no regular file might never answer.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return ""
        return os.read(file, _LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(file)
