"""Interpreter: CPython, configured and compiled for this one program.

Everything that is built into the interpreter is named here. What comes out is a folder of object
files and an executable ``python`` that only the build uses.
"""

import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from . import commands
from .failure import BuildFailure
from .target import Target, here

CONFIGURE = (
    # The trap: with a prefix of this machine, its path would be a string in the executable.
    "--prefix=/",
    "--disable-shared",
    "--without-ensurepip",
    "--disable-test-modules",
    "--without-doc-strings",
    # The trap: where zlib's header lies on the machine, binascii is compiled against the library.
    "PKG_CONFIG=false",
    "ac_cv_header_zlib_h=no",
)

ANSWERS = (
    # Configure can't ask programs of another machine, and takes the worst for granted. On Linux:
    "ac_cv_aligned_required=no",
    "ac_cv_broken_sem_getvalue=no",
    "ac_cv_buggy_getaddrinfo=no",
    "ac_cv_computed_gotos=yes",
    "ac_cv_file__dev_ptc=no",
    "ac_cv_file__dev_ptmx=yes",
    "ac_cv_pthread_system_supported=yes",
    "ac_cv_working_tzset=yes",
)

POSITION = ("-fPIE",)
"""Code for a static executable that is position independent: what static-pie needs, no more."""

SECTIONS = ("-ffunction-sections", "-fdata-sections")
"""Each function and each datum in a section of its own, for the linker to drop the unused ones."""

UNWINDING = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
"""No tables for unwinding: nothing throws through this code. (Of both kinds: for arm64 each is made
where the other is not.)"""

OPT = "-DNDEBUG -fwrapv -O2 -Wall"
"""What stands in for configure's own, which has -g (twice the time to compile, stripped anyway)."""

LTO = ("-flto=2", "-ffat-lto-objects")
"""Link-time optimisation, which takes place where the objects are merged. They are fat, for the
programs that CPython's own build links and runs on the way to take the plain half of each."""

MERGE = ("-O2",)
LTO_MERGE = ("-flto=2", "-flinker-output=nolto-rel")

PROFILED = (
    "-fprofile-use",
    # What the load never reaches is made small; a changed function just has no profile.
    "-Wno-missing-profile",
    "-Wno-coverage-mismatch",
)

COUNTING = ("-fprofile-generate", "-fprofile-update=single")

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "_asyncio": ("_asynciomodule.c",),
    "_blake2": ("_blake2/blake2module.c", "_blake2/blake2b_impl.c", "_blake2/blake2s_impl.c"),
    "_contextvars": ("_contextvarsmodule.c",),
    "_heapq": ("_heapqmodule.c",),
    "_json": ("_json.c",),
    # hashlib logs an error for each of its algorithms that is not there.
    "_md5": ("md5module.c",),
    "_sha1": ("sha1module.c",),
    "_sha256": ("sha256module.c",),
    "_sha3": ("_sha3/sha3module.c",),
    "_sha512": ("sha512module.c",),
    "_opcode": ("_opcode.c",),
    "_posixsubprocess": ("_posixsubprocess.c",),
    "_random": ("_randommodule.c",),
    "_socket": ("socketmodule.c",),
    "_struct": ("_struct.c",),
    "array": ("arraymodule.c",),
    "binascii": ("binascii.c",),
    "fcntl": ("fcntlmodule.c",),
    "grp": ("grpmodule.c",),
    "math": ("mathmodule.c",),
    "mmap": ("mmapmodule.c",),
    "resource": ("resource.c",),
    "select": ("selectmodule.c",),
    "syslog": ("syslogmodule.c",),
    "termios": ("termios.c",),
    "unicodedata": ("unicodedata.c",),
}
"""The extension modules that go in besides those that CPython can't be built without, and their
files below Modules/. None of them loads anything at run time: no ssl, no ctypes, no readline."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A built tree of CPython. ``builder`` is another's executable that runs here, for a machine
    whose own does not."""

    tree: Path
    builder: Path | None = None

    @property
    def python(self) -> Path:
        """The executable that compiles the bytecode; it is part of no product."""
        return self.builder or self.tree / "python"

    @property
    def core(self) -> Path:
        """All of libpython in one object file."""
        return self.tree / "core.o"

    @property
    def library_file(self) -> Path:
        """The same as a library that a program can be linked with."""
        return self.tree / "linked" / "libpython3.a"

    @property
    def library(self) -> Path:
        """Python's own library, as source."""
        return self.tree / "Lib"


def setup_local(extensions: dict[str, tuple[str, ...]]) -> str:
    """Write ``Modules/Setup.local``: every extension module compiled in, none as a shared file."""
    lines = ["*static*", *(f"{name} {' '.join(files)}" for name, files in extensions.items())]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The compiler's flags; ``without`` names measures to leave out, to see what each brings."""

    without: frozenset[str] = frozenset()

    MEASURES: ClassVar[frozenset[str]] = frozenset({"lto", "profile", "sections", "unwinding"})

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of every object that is compiled for the product, but for the profile's."""
        measures = {"sections": SECTIONS, "unwinding": UNWINDING, "lto": LTO}
        kept = (flags for name, flags in measures.items() if name not in self.without)
        return (*POSITION, *(flag for flags in kept for flag in flags))

    @property
    def merge(self) -> tuple[str, ...]:
        """The flags of merging the objects."""
        return MERGE if "lto" in self.without else (*MERGE, *LTO_MERGE)


def key(compiler: str, recipe: Recipe) -> tuple[str, ...]:
    """Name everything besides the source and the profile that the interpreter depends on."""
    flags = (*recipe.flags, *recipe.merge, *PROFILED)
    return (compiler, *CONFIGURE, *ANSWERS, *flags, OPT, setup_local(EXTENSIONS))


def configuration(target: Target, builder: Path | None) -> list[str]:
    """Give what to configure with. ``builder`` is a ``python`` of the same source that runs here,
    for a foreign machine."""
    if builder is None:
        return [*CONFIGURE]
    machines = (f"--host={target.debian}", f"--build={here().debian}")
    return [*CONFIGURE, *machines, f"--with-build-python={builder}", *ANSWERS]


def build(
    target: Target,
    source: Path,
    interpreter: Interpreter,
    epoch: int,
    profile: Path | None,
    recipe: Recipe,
    log: Path,
) -> None:
    """Compile the unpacked ``source`` in a copy of it, the new tree of ``interpreter``, with what
    the archive ``profile`` says of which code runs often."""
    flags = [*recipe.flags, *(PROFILED if profile else ())]
    configured = configuration(target, interpreter.builder)
    # The programs on the way need no optimising: their links take the plain half of the objects.
    _compile(source, interpreter.tree, configured, epoch, flags, ("-fno-lto",), profile, log)
    check_table(interpreter.tree)
    _merge(target, interpreter, recipe, log)


def build_counting(
    target: Target, source: Path, interpreter: Interpreter, epoch: int, log: Path
) -> None:
    """Compile an interpreter that writes beside its objects how often each branch was taken."""
    flags = (*POSITION, *SECTIONS, *UNWINDING, *COUNTING)
    configured = configuration(target, interpreter.builder)
    _compile(source, interpreter.tree, configured, epoch, flags, COUNTING, None, log)


def _compile(
    source: Path,
    tree: Path,
    configured: Iterable[str],
    epoch: int,
    flags: Iterable[str],
    link_flags: Iterable[str],
    profile: Path | None,
    log: Path,
) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(source, tree, symlinks=True)
    if profile is not None:
        unpack_profile(profile, tree)
    (tree / "Modules" / "Setup.local").write_text(setup_local(EXTENSIONS))
    environment = {
        "OPT": OPT,
        "CFLAGS": " ".join(flags),
        # CPython says in sys.version when it was compiled.
        "SOURCE_DATE_EPOCH": str(epoch),
        "LC_ALL": "C",
        # Not the caller's own: a flag or a path from outside would be compiled in.
        "CPPFLAGS": "",
        "LDFLAGS": " ".join(link_flags),
        "PYTHONPATH": "",
        "PYTHONHOME": "",
        "PYTHONHASHSEED": "0",
    }
    commands.run(["./configure", *configured], folder=tree, environment=environment, log=log)
    # Only these two targets: the others build shared modules, tests and documentation.
    targets = ["libpython3.11.a", "python"]
    commands.run(["make", "-j2", *targets], folder=tree, environment=environment, log=log)


def _merge(target: Target, interpreter: Interpreter, recipe: Recipe, log: Path) -> None:
    """Link libpython's objects into one."""
    tree, library = interpreter.tree, interpreter.library_file
    whole = ["-Wl,--whole-archive", "libpython3.11.a", "-Wl,--no-whole-archive"]
    output = ["-o", interpreter.core.name]
    command = [target.tool("gcc"), "-r", "-nostdlib", *recipe.flags, *recipe.merge]
    commands.run([*command, *output, *whole], folder=tree, log=log)
    library.parent.mkdir()
    commands.run([target.tool("ar"), "rcsD", library, interpreter.core], log=log)


def pack_profile(interpreter: Interpreter, archive: Path) -> None:
    """Write the counts of a counting ``interpreter`` to ``archive`` (.tar.xz)."""
    with tarfile.open(archive, "w:xz", preset=9, format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(interpreter.tree.rglob("*.gcda")):
            entry = tarfile.TarInfo(file.relative_to(interpreter.tree).as_posix())
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(entry, content)


def unpack_profile(archive: Path, tree: Path) -> None:
    """Lay the counts where the compiler looks for them: beside the objects."""
    with tarfile.open(archive) as tar:
        for entry in tar.getmembers():
            content = tar.extractfile(entry)
            # The archive is a file of this repository; a name must still stay in the tree.
            target = (tree / entry.name).resolve()
            if content is None or not target.is_relative_to(tree.resolve()):
                raise BuildFailure(f"{archive}: unexpected entry {entry.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


def builtin_modules(tree: Path) -> dict[str, str]:
    """Read the table of ``Modules/config.c``: module name to name of its function, "NULL" for
    those that the interpreter makes by itself."""
    table: dict[str, str] = {}
    inside = False
    for line in (tree / "Modules" / "config.c").read_text().splitlines():
        words = line.replace("{", " ").replace("}", " ").replace(",", " ").split()
        if "_PyImport_Inittab[]" in words:
            inside = True
        elif inside and len(words) == 2 and words[0].startswith('"'):
            table[words[0].strip('"')] = words[1]
        elif inside and words[:1] == ["0"]:
            break
    return table


def check_table(tree: Path) -> None:
    """Stop the build when a module of ours is not in the table.

    The trap: CPython's build leaves out what it can't compile, without a word.
    """
    lost = _missing(EXTENSIONS, builtin_modules(tree))
    if lost:
        raise BuildFailure(f"CPython was built without {', '.join(lost)}; see Modules/config.c")


def _missing(names: Iterable[str], table: dict[str, str]) -> list[str]:
    return sorted(name for name in names if name not in table)
