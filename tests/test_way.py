"""Ways: that they lead where the kernel's lead, and no further than they may."""

import contextlib
import errno
import os
import pathlib
import random
import stat

import pytest

from sniproxy.tools.way import MOST_LINKS, MOST_STEPS, Ground, MazeError
from tests.processes import in_child


@pytest.fixture
def top(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Enter a folder, and leave it at the end."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(ground: Ground, path: str) -> int | tuple[int, int]:
    """Say what a way leads to: the error, or the device and inode."""
    ground.begin()
    with ground.follow(path) as way:
        return way.error or way.identity


def kernel_s(path: str) -> int | tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno or 0
    return status.st_dev, status.st_ino


def plant(chance: random.Random, root: pathlib.Path) -> list[str]:
    """Make directories, files and links that lead anywhere; give paths to try."""
    names = ("a", "b", "c")
    steps = (*names, "..", "..", ".", "")
    paths = []
    for _ in range(30):
        place = root.joinpath(*chance.choices(names, k=chance.randint(1, 3)))
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            kind = chance.randint(0, 3)
            if kind == 0:
                place.mkdir()
            elif kind == 1:
                place.touch()
            else:
                target = "/".join(chance.choices(steps, k=chance.randint(1, 5))) or "/"
                place.symlink_to(chance.choice(("", "/")) + target)
        paths.append("/".join(chance.choices(steps, k=chance.randint(1, 4))) or ".")
    return [path.lstrip("/") or "." for path in paths]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("inside", ["", "a"])
def test_agrees_with_the_kernel(top: pathlib.Path, seed: int, inside: str) -> None:
    chance = random.Random(seed)
    (top / "a").mkdir()
    paths = plant(chance, top)
    os.chdir(top / inside)
    ground = Ground("/")
    assert [outcome(ground, path) for path in paths] == [kernel_s(path) for path in paths]
    ground.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its root directory")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("inside", ["", "a"])
def test_agrees_with_the_kernel_in_a_jail(top: pathlib.Path, seed: int, inside: str) -> None:
    chance = random.Random(seed)
    (top / "a").mkdir()
    paths = plant(chance, top)
    os.chdir(top / inside)
    ground = Ground(str(top))
    ours = [outcome(ground, path) for path in paths]
    ground.close()

    def work() -> None:
        os.chroot(top)
        assert [kernel_s(path) for path in paths] == ours

    in_child(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="root is asked by nobody")
def test_rights_are_those_of_who_looks(top: pathlib.Path) -> None:
    (top / "shut" / "in").mkdir(parents=True)
    (top / "link").symlink_to("shut/in")
    top.chmod(0o755)
    (top / "shut").chmod(0o700)

    def work() -> None:
        ground = Ground(str(top))
        os.setuid(65534)
        with ground.follow("link") as way:
            assert (way.error, way.path[-1], way.missing) == (errno.EACCES, "shut", "in")
            assert way.link is not None

    in_child(work)


def test_says_where_it_ended(top: pathlib.Path) -> None:
    (top / "real").mkdir()
    (top / "to-real").symlink_to("real")
    (top / "to-nothing").symlink_to("real/../nothing")
    (top / "out").symlink_to("../../x")
    ground = Ground(str(top))
    with ground.follow("to-real/file") as way:
        assert (way.error, way.path, way.missing, way.link) == (
            errno.ENOENT,
            ["real"],
            "file",
            None,
        )
    with ground.follow("to-nothing/file") as way:
        assert (way.path, way.missing) == ([], "nothing")
        assert way.link == way.links[0]
        assert (way.link.path, way.link.target) == (("to-nothing",), "real/../nothing")
        assert not way.turned
    with ground.follow("out") as way:
        assert (way.path, way.missing, way.turned) == ([], "x", True)
    ground.close()
    with pytest.raises(ValueError, match="does not lie in"):
        Ground(str(top / "real"))


def test_as_many_links_as_the_kernel_follows(top: pathlib.Path) -> None:
    (top / "0").mkdir()
    for number in range(1, MOST_LINKS + 2):
        (top / str(number)).symlink_to(str(number - 1))
    ground = Ground("/")
    for number in (MOST_LINKS, MOST_LINKS + 1):
        assert outcome(ground, str(number)) == kernel_s(str(number))
    assert outcome(ground, str(MOST_LINKS + 1)) == errno.ELOOP
    ground.close()


def test_a_maze_is_left(top: pathlib.Path) -> None:
    """Links of links, and as many names in each as fit: what is counted is what is looked up."""
    (top / "d").mkdir()
    for number in range(MOST_LINKS):
        onward = f"l{number + 1}" if number < MOST_LINKS - 1 else "d"
        (top / f"l{number}").symlink_to("d/../" * 800 + onward)
    (top / "short").symlink_to("d/../" * 100 + "d")
    ground = Ground("/")
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MazeError), ground.follow("l0"):
        pass
    with ground.follow("short") as way:
        assert stat.S_ISDIR(way.mode)
        steps = 2 * 100 + 2
    # All ways of an entry together.
    for _ in range(MOST_STEPS // steps - 1):
        with ground.follow("short"):
            pass
    with pytest.raises(MazeError), ground.follow("short"):
        pass
    ground.begin()
    with ground.follow("short"):
        pass
    assert len(os.listdir("/proc/self/fd")) == descriptors
    ground.close()
