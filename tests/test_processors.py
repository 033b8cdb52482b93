"""How many CPUs we may use, from files like the kernel's."""

import os
import pathlib

import pytest

from sniproxy.process import processors


def quota(folder: pathlib.Path, own: str, limits: dict[str, str]) -> float | None:
    """Lay out /proc/self/cgroup and the groups below /sys/fs/cgroup; ask for the quota."""
    (folder / "own").write_text(own)
    for group, limit in limits.items():
        (folder / "groups" / group).mkdir(parents=True, exist_ok=True)
        (folder / "groups" / group / "cpu.max").write_text(limit)
    return processors.quota(str(folder / "own"), str(folder / "groups"))


def test_the_least_of_all_groups_above(tmp_path: pathlib.Path) -> None:
    limits = {"a/b": "300000 100000\n", "a": "150000 100000\n", "": "max 100000\n"}
    assert quota(tmp_path, "0::/a/b\n", limits) == 1.5


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        ("0::/\n", {}),
        ("0::/a\n", {"a": "max 100000\n"}),
        ("0::/a\n", {"a": "nonsense\n"}),
        ("0::/a\n", {"a": "1 0\n"}),
        ("0::/a\n", {"a": "-5 100000\n"}),
        ("0::/a\n", {"a": "100000 -1\n"}),
        ("0::/a\n", {"a": "9" * 4000 + " 1\n"}),
        ("0::/a\0b\n", {}),
        ("3:cpu:/a\n", {"a": "100000 100000\n"}),
        ("", {}),
    ],
)
def test_no_limit(tmp_path: pathlib.Path, own: str, limits: dict[str, str]) -> None:
    assert quota(tmp_path, own, limits) is None


def test_what_never_answers_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert processors.quota(str(tmp_path / "fifo"), str(tmp_path)) is None
    assert processors.quota(str(tmp_path / "missing"), str(tmp_path)) is None


def test_usable_is_at_most_the_affinity(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = len(os.sched_getaffinity(0))
    hosts = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(processors, "quota", lambda: None)
    assert processors.usable(hosts) == offered
    monkeypatch.setattr(processors, "quota", lambda: offered + 7.5)
    assert processors.usable(hosts) == offered
    monkeypatch.setattr(processors, "quota", lambda: 0.2)
    assert processors.usable(hosts) == 1
    os.close(hosts)


def test_no_quota_is_looked_for_in_a_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "quota", lambda: 0.2)
    root = os.open("/", os.O_RDONLY)
    assert processors.usable(root) == len(os.sched_getaffinity(0))
    os.close(root)
