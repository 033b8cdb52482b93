"""What takes the place of modules of the standard library in the executable."""

import ast
import dis
import gettext
import importlib.util
import inspect
import linecache
import os
import subprocess
import sys
import termios
from pathlib import Path
from types import ModuleType

import pytest

STAND_IN = Path(__file__).resolve().parent.parent / "launcher" / "stand_in"


def stand_in(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stand_in_{name}", STAND_IN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_linecache_takes_what_the_real_one_takes() -> None:
    ours = stand_in("linecache")
    for name in ("getline", "getlines", "updatecache", "lazycache", "checkcache", "clearcache"):
        real, mine = (inspect.signature(getattr(module, name)) for module in (linecache, ours))
        assert list(mine.parameters) == list(real.parameters), name
        assert [p.default for p in mine.parameters.values()] == [
            p.default for p in real.parameters.values()
        ], name


def test_the_flags_of_code_are_the_real_ones() -> None:
    ours = stand_in("dis").COMPILER_FLAG_NAMES
    assert ours.items() <= dis.COMPILER_FLAG_NAMES.items()
    if sys.version_info[:2] == (3, 11):
        assert ours == dis.COMPILER_FLAG_NAMES


def test_ast_has_what_inspect_needs_when_it_is_imported() -> None:
    assert issubclass(stand_in("ast").NodeVisitor, object)
    assert hasattr(ast, "NodeVisitor")


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the executable's library is that of Python 3.11"
)
@pytest.mark.parametrize(
    "fault",
    [
        "import traceback\ntry:\n    exec(code)\nexcept ValueError:\n    traceback.print_exc()",
        "import warnings\nwarnings.simplefilter('always')\nexec(code.replace(*swap))",
    ],
)
def test_neither_a_traceback_nor_a_warning_opens_a_file(tmp_path: Path, fault: str) -> None:
    """A FIFO that is named like the code's file would hold an open for ever."""
    os.mkfifo(tmp_path / "code.module")
    code = (
        f"import sys\nsys.path[:0] = [{str(STAND_IN)!r}]\nimport linecache\n"
        "swap = ('raise ValueError(1)', 'import warnings; warnings.warn(str(1))')\n"
        "class Code(str):\n    pass\n"
        f"source = 'raise ValueError(1)'\n"
        "def run(text):\n"
        "    exec(compile(text, 'code.module', 'exec'), {'__name__': 'code.module'})\n"
        f"fault = {fault!r}\n"
        "exec(fault.replace('exec(code.replace(*swap))', 'run(source.replace(*swap))')"
        ".replace('exec(code)', 'run(source)'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "code.module" in done.stderr


@pytest.mark.parametrize(("number", "word"), [(0, "many"), (1, "one"), (2, "many")])
def test_gettext_translates_nothing(number: int, word: str) -> None:
    ours = stand_in("gettext")
    assert ours.gettext("usage: ") == "usage: "
    assert ours.ngettext("one", "many", number) == word == gettext.ngettext("one", "many", number)


def test_the_size_of_a_terminal_is_asked_for() -> None:
    ours = stand_in("shutil")
    main, terminal = os.openpty()
    saved = os.dup(1)
    try:
        termios.tcsetwinsize(terminal, (30, 100))
        os.dup2(terminal, 1)
        assert ours.get_terminal_size() == (100, 30)
        termios.tcsetwinsize(terminal, (0, 0))
        assert ours.get_terminal_size() == (80, 24)
    finally:
        os.dup2(saved, 1)
        for descriptor in (main, terminal, saved):
            os.close(descriptor)


def test_the_encoding_is_utf_8() -> None:
    assert stand_in("locale").getencoding() == "utf-8"


def test_logging_has_what_the_standard_library_uses() -> None:
    ours = stand_in("logging")
    logger = ours.getLogger("asyncio")
    logger.warning("%s", 1, exc_info=True)
    logger.log(ours.ERROR, "x")
    ours.exception("x")
    assert not logger.isEnabledFor(ours.DEBUG)
