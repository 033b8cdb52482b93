"""How the interpreter is configured, and its kept profile."""

import io
import tarfile
from pathlib import Path

import pytest

from launcher.chain import interpreter
from launcher.chain.failure import BuildFailure
from launcher.chain.interpreter import Interpreter

CONFIG = """
extern PyObject* PyInit_posix(void);
struct _inittab _PyImport_Inittab[] = {

    {"posix", PyInit_posix},
    /* This module lives in marshal.c */
    {"marshal", PyMarshal_Init},
    {"sys", NULL},

    /* Sentinel */
    {0, 0}
};
"""


def test_every_extension_is_compiled_in() -> None:
    lines = interpreter.setup_local({"math": ("mathmodule.c",), "x": ("a.c", "b.c")}).splitlines()
    assert lines == ["*static*", "math mathmodule.c", "x a.c b.c"]


def test_the_table_of_modules_is_read(tmp_path: Path) -> None:
    (tmp_path / "Modules").mkdir()
    (tmp_path / "Modules" / "config.c").write_text(CONFIG)
    assert interpreter.builtin_modules(tmp_path) == {
        "posix": "PyInit_posix",
        "marshal": "PyMarshal_Init",
        "sys": "NULL",
    }


def test_a_module_that_was_not_built_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "Modules").mkdir()
    (tmp_path / "Modules" / "config.c").write_text(CONFIG)
    with pytest.raises(BuildFailure, match="built without _asyncio"):
        interpreter.check_table(tmp_path)


def test_nothing_that_loads_at_run_time_is_built_in() -> None:
    assert not {"_ssl", "_hashlib", "_ctypes", "readline", "_curses"} & set(interpreter.EXTENSIONS)


def test_a_profile_comes_out_as_it_went_in(tmp_path: Path) -> None:
    for number, name in enumerate(("Objects/x.gcda", "Modules/_io/y.gcda", "Objects/x.o")):
        file = tmp_path / "counting" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]) * 9)
    archives = [tmp_path / "one.tar.xz", tmp_path / "two.tar.xz"]
    for archive in archives:
        interpreter.pack_profile(Interpreter(tmp_path / "counting"), archive)
    interpreter.unpack_profile(archives[0], tmp_path / "tree")
    found = {
        file.relative_to(tmp_path / "tree").as_posix(): file.read_bytes()
        for file in (tmp_path / "tree").rglob("*")
        if file.is_file()
    }
    assert found == {"Objects/x.gcda": bytes(9), "Modules/_io/y.gcda": b"\1" * 9}
    assert archives[0].read_bytes() == archives[1].read_bytes()


@pytest.mark.parametrize("name", ["../out.gcda", "/out.gcda"])
def test_a_profile_stays_in_its_tree(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "bad.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(BuildFailure, match="unexpected entry"):
        interpreter.unpack_profile(archive, tmp_path / "tree")
    assert not (tmp_path / "out.gcda").exists()
