"""Distribution: interpreter and modules in the format of python-build-standalone, version 7.

PyOxidizer takes a Python only in this form: a ``.tar.zst`` of the objects that libpython is linked
from, the modules as source, the headers, and ``PYTHON.json``, which describes them. Ours holds the
selected modules and nothing else, so that what is not needed can't get in later either.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import commands
from .interpreter import Interpreter, builtin_modules
from .target import here

FORMAT_VERSION = "7"
SYSTEM_LIBRARIES = ("m", "dl", "util", "pthread", "rt")

CORE = "build/core.o"
"""All of libpython, as one object file."""

ABOUT = (
    "import importlib.util, json, sys, sysconfig;"
    "print(json.dumps({'version': sys.version.split()[0],"
    " 'magic': importlib.util.MAGIC_NUMBER.hex(), 'tag': sys.implementation.cache_tag,"
    " 'hex': sys.hexversion}))"
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive: its name below ``python/``, its mode, and where its bytes are."""

    name: str
    content: Path | bytes
    mode: int = 0o644


def assemble(
    interpreter: Interpreter,
    modules: dict[str, Path],
    archive: Path,
    epoch: int,
    log: Path,
) -> None:
    """Write the distribution ``archive`` (``.tar.zst``)."""
    described = json.loads(commands.output_of([interpreter.python, "-I", "-S", "-c", ABOUT]))
    description = json.dumps(
        python_json(described, builtin_modules(interpreter.tree)), indent=1, sort_keys=True
    )
    members = [
        Member("PYTHON.json", description.encode()),
        *_members(interpreter, modules),
    ]
    archive.parent.mkdir(parents=True, exist_ok=True)
    plain = archive.with_suffix("")
    write_tar(plain, members, epoch)
    commands.run(["zstd", "-q", "-f", "-3", "-T1", plain, "-o", archive], log=log)
    plain.unlink()


def _members(interpreter: Interpreter, modules: dict[str, Path]) -> Iterator[Member]:
    tree = interpreter.tree
    yield Member(CORE, interpreter.core)
    yield Member("build/Modules/config.o", tree / "Modules" / "config.o")
    yield Member("build/Modules/config.c", tree / "Modules" / "config.c")
    yield Member("install/bin/python3", interpreter.python, 0o755)
    yield Member("licenses/LICENSE.cpython.txt", tree / "LICENSE")
    for name, file in sorted(modules.items()):
        path = name.replace(".", "/")
        path += "/__init__.py" if file.name == "__init__.py" else ".py"
        yield Member(f"install/lib/python3.11/{path}", file)
    headers = sorted((tree / "Include").rglob("*.h"))
    yield Member("install/include/python3.11/pyconfig.h", tree / "pyconfig.h")
    for header in headers:
        below = header.relative_to(tree / "Include").as_posix()
        yield Member(f"install/include/python3.11/{below}", header)


def python_json(described: dict[str, str | int], builtins: dict[str, str]) -> dict[str, object]:
    """Describe the distribution: ``described`` is what the interpreter says of itself, ``builtins``
    the table of its modules."""
    version = str(described["version"])
    tag = str(described["tag"])
    return {
        "version": FORMAT_VERSION,
        "target_triple": here().triple,
        "optimizations": "noopt",
        "python_tag": "cp311",
        "python_abi_tag": "cp311",
        "python_config_vars": {},
        "python_platform_tag": f"linux-{here().machine}",
        "python_implementation_cache_tag": tag,
        "python_implementation_hex_version": described["hex"],
        "python_implementation_name": "cpython",
        "python_implementation_version": version.split("."),
        "python_version": version,
        "python_major_minor_version": "3.11",
        "python_paths": {
            "stdlib": "install/lib/python3.11",
            "include": "install/include/python3.11",
            "data": "install",
        },
        "python_paths_abstract": {},
        "python_exe": "install/bin/python3",
        "python_stdlib_test_packages": [],
        "python_suffixes": {
            "bytecode": [".pyc"],
            "debug_bytecode": [".pyc"],
            "extension": [".so"],
            "optimized_bytecode": [".pyc"],
            "source": [".py"],
        },
        "python_bytecode_magic_number": described["magic"],
        "python_symbol_visibility": "global-default",
        "python_extension_module_loading": ["builtin"],
        "libpython_link_mode": "static",
        "crt_features": ["glibc-dynamic"],
        "run_tests": "",
        "build_info": {
            "core": {
                "objs": [CORE],
                "links": [{"name": name, "system": True} for name in SYSTEM_LIBRARIES],
            },
            "extensions": {
                name: [_extension(name, function)] for name, function in builtins.items()
            },
            "inittab_object": "build/Modules/config.o",
            "inittab_source": "build/Modules/config.c",
            "inittab_cflags": ["-std=c99", "-DPy_BUILD_CORE"],
            "object_file_format": "elf",
        },
        "licenses": ["Python-2.0"],
        "license_path": "licenses/LICENSE.cpython.txt",
        "tcl_library_path": None,
        "tcl_library_paths": None,
    }


def _extension(name: str, function: str) -> dict[str, object]:
    # Each is in the core's object: nothing is added and nothing linked for it.
    return {
        "in_core": True,
        "init_fn": function,
        "required": True,
        "objs": [],
        "links": [],
        "variant": "default",
        "license_public_domain": False,
        "licenses": ["Python-2.0"],
        "license_paths": ["licenses/LICENSE.cpython.txt"],
        "name": name,
    }


def write_tar(archive: Path, members: Iterable[Member], epoch: int) -> None:
    """Write ``members`` below ``python/`` so that equal contents give equal bytes: times, owners
    and modes are fixed, the order is the members' own."""
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            entry = tarfile.TarInfo(f"python/{member.name}")
            entry.mtime = epoch
            entry.mode = member.mode
            if isinstance(member.content, bytes):
                entry.size = len(member.content)
                tar.addfile(entry, io.BytesIO(member.content))
            else:
                entry.size = member.content.stat().st_size
                with member.content.open("rb") as content:
                    tar.addfile(entry, content)
