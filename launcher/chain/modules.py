"""Modules: which of Python's library goes into the executable.

The commands' own code is followed import by import (the standard library's ``modulefinder``), also
into functions, because an import there is as real as one at the top. What would be found only on
roads that our commands never take (other platforms, ``if __name__ == "__main__"``, debuggers,
pickling …) is cut off by ``NEVER_TAKEN``. What is neither in nor named there stops the build, and
the tests run the commands' code with everything else forbidden.
"""

import modulefinder
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .failure import BuildFailure

ROOTS = ("sniproxy.commands",)
"""Where following the imports starts; every module of the package goes in besides."""

INTERPRETER_NEEDS = (
    # Imported by the interpreter itself, from C, before our code runs.
    "abc",
    "codecs",
    "encodings",
    "encodings.aliases",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "io",
    "os",
    # C imports these by name when they are needed.
    "collections.abc",
    "copyreg",
    "importlib.machinery",
    "importlib.util",
    "threading",
    "traceback",
    "warnings",
    "weakref",
)

CODECS = (
    # Found by the name of an encoding, so no import in the code shows them.
    "encodings.punycode",  # idna
    "encodings.unicode_escape",  # sniproxy-status
)

NEVER_TAKEN: dict[str, str] = {
    # Other platforms.
    "_aix_support": "AIX",
    "_bootsubprocess": "AIX",
    "_osx_support": "macOS",
    "_scproxy": "macOS",
    "_overlapped": "Windows",
    "_winapi": "Windows",
    "_winreg": "Windows",
    "asyncio.proactor_events": "Windows",
    "asyncio.windows_events": "Windows",
    "asyncio.windows_utils": "Windows",
    "windows_events": "Windows (asyncio.windows_events, as asyncio/__init__.py names it)",
    "encodings.mbcs": "Windows",
    "java.lang": "Jython",
    "msvcrt": "Windows",
    "nt": "Windows",
    "ntpath": "Windows",
    "org.python.core": "Jython",
    "vms_lib": "VMS",
    "winreg": "Windows",
    # The interpreter has them from elsewhere.
    "_frozen_importlib": "frozen",
    "_frozen_importlib_external": "frozen",
    "zipimport": "frozen",
    # asyncio does without TLS of its own; we relay what we don't decrypt.
    "_ssl": "no OpenSSL",
    "ssl": "no OpenSSL",
    "_hashlib": "no OpenSSL",
    # Accelerators of modules that have a Python version, or optional altogether.
    "_bisect": "no speed needed",
    "_datetime": "no speed needed",
    "_pickle": "no pickling",
    "_queue": "no speed needed",
    "_statistics": "no speed needed",
    "_typing": "no such module in 3.11",
    "_py_abc": "_abc is there",
    "_threading_local": "_thread is there",
    # A module run by itself (python3 -m …), its tests and its tools.
    "__main__": "the launcher has none",
    "_testcapi": "tests",
    "_testinternalcapi": "tests",
    "_typeshed": "for type checkers only",
    "bdb": "debugger",
    "code": "debugger",
    "doctest": "a module run by itself",
    "pdb": "debugger",
    "pydoc": "help()",
    "test": "tests",
    "unittest": "tests",
    # Processes and threads in pools, which we don't have.
    "concurrent.futures.process": "no pools of processes",
    "multiprocessing": "no pools of processes",
    "process": "no pools of processes (concurrent.futures.process)",
    # Files of packages, and importing from files.
    "importlib.metadata": "nothing is installed",
    "importlib.readers": "no data files",
    "importlib.resources": "no data files",
    "importlib.resources.abc": "no data files",
    "pkgutil": "no data files",
    "runpy": "nothing is run from files",
    "site": "site_import is False",
    "sysconfig": "not installed",
    # Conveniences that no command of ours reaches.
    "_strptime": "no dates are read",
    "bz2": "no archives",
    "calendar": "no dates are read",
    "ctypes": "nothing is loaded at run time",
    "ctypes.util": "nothing is loaded at run time",
    "dummy.Process": "no pools of processes",
    "lzma": "no archives",
    "pickle": "no pickling",
    "pwd.struct_passwd": "a name, not a module",
    "readline": "not interactive",
    "statistics": "no statistics",
    "tempfile": "no temporary files",
    "tracemalloc": "debugger",
    "tty": "no terminal but by termios",
    "urllib.parse": "no URLs",
    "zlib": "no archives",
}
"""Modules that an import in the code names and that are left out, each with the reason."""


TESTS = {"test", "tests", "idle_test", "lib2to3", "__pycache__"}
"""Folders of Python's library that nobody would take along."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The modules that go in: name to source file (packages by their ``__init__.py``), and the
    compiled-in ones that they import."""

    files: dict[str, Path]
    builtins: frozenset[str]


def select(
    folders: Sequence[Path],
    roots: Iterable[str],
    builtins: Collection[str],
    never_taken: Collection[str],
) -> Selection:
    """Follow the imports of ``roots`` through ``folders`` (in the order of ``sys.path``).

    Raises ``BuildFailure`` for a root that is not there, and for an import that leads nowhere and
    is not named in ``never_taken``.
    """
    finder = modulefinder.ModuleFinder(
        path=[str(folder) for folder in folders], excludes=list(never_taken)
    )
    for root in roots:
        try:
            finder.import_hook(root)
        except ImportError as error:
            raise BuildFailure(f"the executable needs {root}, which is not there") from error
    files: dict[str, Path] = {}
    reached: set[str] = set()
    for name, module in finder.modules.items():
        file: str | None = vars(module)["__file__"]
        if file is not None:
            files[name] = Path(file)
        else:
            reached.add(name)
    lost = (reached - set(builtins)) | _leading_nowhere(finder, files, builtins, never_taken)
    if lost:
        raise BuildFailure(
            "These modules are imported and are not in the executable: "
            f"{', '.join(sorted(lost))}.\nAdd them to EXTENSIONS (interpreter.py) or say in "
            "NEVER_TAKEN (modules.py) why no command ever gets there."
        )
    return Selection(dict(sorted(files.items())), frozenset(reached))


def whole_library(library: Path) -> dict[str, Path]:
    """Name every module of Python's ``library`` but its tests, for comparison."""
    files = {}
    for file in sorted(library.rglob("*.py")):
        below = file.relative_to(library)
        if TESTS & set(below.parts) or "-" in str(below):
            continue
        parts = below.parent.parts if file.name == "__init__.py" else below.with_suffix("").parts
        files[".".join(parts)] = file
    return files


def _leading_nowhere(
    finder: modulefinder.ModuleFinder,
    files: Collection[str],
    builtins: Collection[str],
    never_taken: Collection[str],
) -> set[str]:
    # "from package import name" of a name that is no module is reported as if it were one; such a
    # name has a parent that was found.
    missing, _ = finder.any_missing_maybe()
    return {
        name
        for name in missing
        if name not in builtins
        and not any(name == left or name.startswith(f"{left}.") for left in never_taken)
        and name.rpartition(".")[0] not in files
    }


def package_modules(package: Path) -> list[str]:
    """Name every module of ``package``, its own name first."""
    names = []
    for file in sorted(package.rglob("*.py")):
        parts = [package.name, *file.relative_to(package).with_suffix("").parts]
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)
