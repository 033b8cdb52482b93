"""What the kernel has on account for a process and all below it: CPU time, memory, processes."""

import os
import pathlib

PROC = pathlib.Path("/proc")
TICK = 1 / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Give a process and all below it, the first one first."""
    parents: dict[int, int] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                after_name = (folder / "stat").read_text().rpartition(")")[2]
            except OSError:
                continue
            parents[int(folder.name)] = int(after_name.split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def cpu(pid: int) -> float:
    """CPU seconds, user and system, of a process and all that it has ever started.

    The living are counted to the nanosecond (the first word of schedstat), children that have
    ended and were waited for to the clock tick, proc(5).
    """
    total = 0.0
    for one in family(pid):
        try:
            for task in (PROC / str(one) / "task").iterdir():
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
            after_name = (PROC / str(one) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(after_name[13]) + int(after_name[14])) * TICK
    return total


def user(pid: int) -> float:
    """CPU seconds in user mode, likewise, to the clock tick."""
    ticks = 0
    for one in family(pid):
        try:
            after_name = (PROC / str(one) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(after_name[11]) + int(after_name[13])
    return ticks * TICK


def switches(pid: int) -> int:
    """Count how often a process, and all below it, have waited: each time they are woken."""
    count = 0
    for one in family(pid):
        try:
            for task in (PROC / str(one) / "task").iterdir():
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches:"):
                        count += int(line.split()[1])
        except OSError:
            continue
    return count


def descriptors(pid: int) -> int:
    """Count the open descriptors of a process and all below it."""
    count = 0
    for one in family(pid):
        try:
            count += len(list((PROC / str(one) / "fd").iterdir()))
        except OSError:
            continue
    return count


def _rollup(pid: int, name: str) -> int:
    """Bytes that smaps_rollup has under a name; none where the process has just left."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def memory(pid: int) -> int:
    """Resident bytes: of one process all of them, shared libraries as well; of several what they
    share among themselves once."""
    members = family(pid)
    if len(members) == 1:
        return _rollup(pid, "Rss")
    return sum(_rollup(one, "Pss") for one in members)
