"""The distribution that PyOxidizer reads."""

import os
import tarfile
from pathlib import Path

from launcher.chain import distribution
from launcher.chain.distribution import Member


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    archives = []
    for number in range(2):
        file = tmp_path / f"content-{number}"
        file.write_text("content")
        file.chmod(0o600 + number * 0o77)
        os.utime(file, (number, number))
        archive = tmp_path / f"{number}.tar"
        members = [Member("PYTHON.json", b"{}"), Member("bin/python3", file, 0o755)]
        distribution.write_tar(archive, members, 1_600_000_000)
        archives.append(archive.read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert [(entry.name, entry.mode, entry.mtime, entry.uid) for entry in tar] == [
            ("python/PYTHON.json", 0o644, 1_600_000_000, 0),
            ("python/bin/python3", 0o755, 1_600_000_000, 0),
        ]


def test_every_builtin_module_is_described_as_part_of_the_core() -> None:
    described = {"version": "3.11.2", "magic": "a70d0d0a", "tag": "cpython-311", "hex": 51053296}
    builtins = {"posix": "PyInit_posix", "sys": "NULL"}
    text = distribution.python_json(described, builtins)
    assert text["version"] == "7"
    assert text["libpython_link_mode"] == "static"
    assert text["python_extension_module_loading"] == ["builtin"]
    build = text["build_info"]
    assert isinstance(build, dict)
    assert set(build["extensions"]) == set(builtins)
    for name, (variant,) in build["extensions"].items():
        assert variant["init_fn"] == builtins[name]
        assert variant["in_core"]
        assert variant["required"]
        assert variant["objs"] == variant["links"] == []
