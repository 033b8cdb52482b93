#!/usr/bin/env python3
"""Build the executable: ``python3 launcher/build.py [--hashed] [--output FILE]``.

``--target MACHINE`` builds for another machine than this one, into ``dist/MACHINE/``.
What is made on the way lies in ``build/``; what was made from the same things before is kept.
``--train`` takes the interpreter's profile anew, for this machine's architecture and compiler.
``--without`` leaves a measure out that makes the executable smaller or faster, to see what it
brings (``measure.py`` does); such a build has a folder of its own below ``build/``.
"""

import argparse
import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chain import commands, distribution, executable, interpreter, modules, sources, training
from chain.failure import BuildFailure
from chain.requirements import missing, require
from chain.stages import Stages, digest
from chain.target import MACHINES, Target, here

ROOT = Path(__file__).resolve().parent.parent

EPOCH = 1_600_000_000
"""The time that every product says it is from, in seconds since 1970: the same for each build, so
that a commit that changes no code changes no bytes."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything of one build lies."""

    root: Path
    build: Path
    without: frozenset[str] = frozenset()
    target: Target = field(default_factory=here)

    @property
    def own(self) -> Path:
        """Where that lies which differs between machines."""
        return self.build / self.target.machine if self.target.foreign else self.build

    @property
    def work(self) -> Path:
        """Where that lies which differs between variants."""
        return self._variant(self.without)

    @property
    def compiled(self) -> Path:
        """The same for the interpreter, to which not every measure is of concern."""
        return self._variant(self.without & interpreter.Recipe.MEASURES)

    def _variant(self, without: frozenset[str]) -> Path:
        return self.own / "-".join(["without", *sorted(without)]) if without else self.own

    @property
    def launcher(self) -> Path:
        return self.root / "launcher"

    @property
    def package(self) -> Path:
        return self.root / "sniproxy"

    @property
    def source(self) -> Path:
        return self.build / "source"

    @property
    def origin(self) -> Path:
        """What the source is, for the bill of materials."""
        return self.build / "source.json"

    @property
    def tree(self) -> Path:
        return self.compiled / "interpreter"

    def log(self, stage: str) -> Path:
        return self.own / "logs" / f"{stage}.log"


class Build:
    """One run of the chain: a method for each of its stages, in their order."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.without = places.without
        self.target = places.target
        self.stages = Stages(places.build / "stamps")
        self.own_stages = Stages(places.work / "stamps")
        # Of another machine's interpreter nothing runs here: our own of the same source does.
        self.native = Build(replace(places, target=here())) if self.target.foreign else None
        builder = self.native.interpreter.python if self.native else None
        self.interpreter = interpreter.Interpreter(places.tree, builder)
        self.tools = executable.Tools(places.build / "tools")
        self.gcc = self.target.tool("gcc")
        self.compiler = commands.output_of([self.gcc, "--version"]).splitlines()[0]

    @property
    def profile(self) -> Path:
        """The kept profile for this architecture and major version of the compiler."""
        version = commands.output_of([self.gcc, "-dumpversion"]).split(".")[0].strip()
        name = f"{self.target.machine}-gcc-{version}.tar.xz"
        return self.places.launcher / "profile" / name

    def source(self) -> None:
        """Have CPython's source, as long as the same one is wanted."""
        places = self.places
        tarball = sources.wanted(os.environ)
        log, workshop = places.log("source"), places.build / "source-archive"
        wish = f"{tarball.location} {tarball.sha256}" if tarball else "debian"

        def work() -> None:
            if tarball:
                origin = sources.unpack_tarball(tarball, workshop, places.source, log)
            else:
                origin = sources.unpack_debian(workshop, places.source, log)
            sources.write_origin(origin, places.origin)

        key = digest(wish, places.launcher / "chain" / "sources.py")
        self.stages.stage("source", key, [places.source, places.origin], work)

    def compile(self) -> None:
        """Have the interpreter: minutes, but only when it is other than before."""
        places = self.places
        if self.native:
            self.native.compile()
        profile: Path | None = self.profile
        recipe = interpreter.Recipe(self.without)
        if "profile" in self.without:
            profile = None
        elif not self.profile.exists():
            print(f"interpreter: there is no profile {self.profile.name}: it will be a slower one")
            profile = None
        machine = commands.output_of([self.gcc, "-dumpmachine"]).strip()
        inputs = [*interpreter.key(self.compiler, recipe), machine, str(EPOCH)]

        def work() -> None:
            log = places.log("interpreter")
            made = self.interpreter
            interpreter.build(self.target, places.source, made, EPOCH, profile, recipe, log)

        products = [self.interpreter.core, self.interpreter.library_file, self.interpreter.python]
        key = digest(*inputs, places.origin, profile or "no profile")
        Stages(places.compiled / "stamps").stage("interpreter", key, products, work)

    def install_tools(self) -> None:
        """Have PyOxidizer and idna, the pinned ones."""
        requirements = self.places.launcher / "requirements.txt"
        key = digest(requirements, sys.version, sys.executable)

        def work() -> None:
            executable.install_tools(self.tools.folder, requirements, self.places.log("tools"))

        self.stages.stage("tools", key, [self.tools.pyoxidizer], work)

    def select(self) -> modules.Selection:
        """Follow the imports."""
        places = self.places
        stand_in = [] if "stand-ins" in self.without else [places.launcher / "stand_in"]
        folders = [places.root, *stand_in, self.interpreter.library, self.tools.packages]
        ours = [name for name in modules.package_modules(places.package) if name != MAIN]
        builtins = interpreter.builtin_modules(places.tree)
        roots = [*modules.ROOTS, *ours, *modules.INTERPRETER_NEEDS, *modules.CODECS]
        selection = modules.select(folders, roots, builtins, modules.NEVER_TAKEN)
        if "selection" in self.without:
            files = {**modules.whole_library(self.interpreter.library), **selection.files}
            return modules.Selection(files, selection.builtins)
        return selection

    def pack(self, *, hashed: bool) -> Path:
        """Have the distribution and what PyOxidizer makes of it, which is good for any machine;
        give the folder of the latter."""
        if self.native:
            return self.native.pack(hashed=hashed)
        places, flavour = self.places, "hashed" if hashed else "plain"
        selection = self.select()
        library, packages = _divide(selection, self.interpreter.library, places.launcher)
        archive = places.work / "distribution" / "python.tar.zst"
        log = places.log("distribution")

        key = digest(
            *(f"{name} {file.name}" for name, file in library.items()),
            *library.values(),
            self.interpreter.core,
            places.launcher / "chain" / "distribution.py",
        )
        self.own_stages.stage(
            "distribution",
            key,
            [archive],
            lambda: distribution.assemble(self.interpreter, library, archive, EPOCH, log),
        )

        resources = places.work / f"resources-{flavour}"

        def work() -> None:
            folder = places.build / "packages"
            executable.lay_out(packages, folder)
            executable.pack(
                self.tools,
                places.root / "pyoxidizer.bzl",
                archive,
                folder,
                hashed=hashed,
                destination=resources,
                workshop=places.build,
                log=places.log("resources"),
            )

        whole = digest(
            flavour,
            *(f"{name} {file.name}" for name, file in packages.items()),
            *packages.values(),
            key,
            places.root / "pyoxidizer.bzl",
            places.launcher / "requirements.txt",
            places.launcher / "chain" / "executable.py",
        )
        made = [resources / name for name in executable.RESOURCES]
        self.own_stages.stage(f"resources-{flavour}", whole, made, work)
        return resources

    def link(self, resources: Path, output: Path) -> None:
        """Have the executable."""
        launcher, folder = self.places.launcher, self.places.own / "cargo"
        names = ("Cargo.toml", "Cargo.lock", "build.rs", executable.LINKER)
        crate = [launcher / name for name in names]
        rustc = commands.output_of(["rustc", "--version", "--verbose"], self.target.rust)
        key = digest(
            str(output),
            rustc,
            *executable.link_inputs(self.target),
            resources,
            self.interpreter.library_file,
            *crate,
            launcher / "src",
            launcher / "chain" / "executable.py",
        )

        def work() -> None:
            log, made = self.places.log("executable"), self.interpreter
            executable.link(
                self.target, launcher, resources, made, folder, output, log, self.without
            )

        self.own_stages.stage(
            resources.name.replace("resources", "executable"), key, [output], work
        )

    def train(self) -> None:
        """Take the profile anew."""
        tree = self.places.own / "interpreter-counting"
        log = self.places.log("training")
        if self.native:
            self.native.compile()
        print("training: compiling an interpreter that counts …", flush=True)
        counting = interpreter.Interpreter(tree, self.interpreter.builder)
        interpreter.build_counting(self.target, self.places.source, counting, EPOCH, log)
        for counts in tree.rglob("*.gcda"):
            # Of its own build: compiling Python's library is not our work.
            counts.unlink()
        print("training: the load …", flush=True)
        training.train([*self.target.emulator, str(tree / "python")], self.places.root)
        self.profile.parent.mkdir(exist_ok=True)
        interpreter.pack_profile(counting, self.profile)
        print(f"training: wrote {self.profile}")


MEASURES = sorted(interpreter.Recipe.MEASURES | {"relocations", "selection", "stand-ins", "strip"})
"""What makes the executable smaller or faster and can be left out, to see what it brings."""

MAIN = "sniproxy.__main__"
"""For ``python3 -m``; the launcher does its work."""


def _divide(
    selection: modules.Selection, library: Path, launcher: Path
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Divide the modules into Python's own (and what stands in for them) and the packages."""
    standard = {
        name: file
        for name, file in selection.files.items()
        if file.is_relative_to(library) or file.is_relative_to(launcher)
    }
    packages = {name: file for name, file in selection.files.items() if name not in standard}
    return standard, packages


def make(
    output: Path,
    *,
    hashed: bool,
    without: frozenset[str] = frozenset(),
    target: Target | None = None,
) -> str:
    """Have the executable at ``output``, for this machine if no ``target`` is given; give what it
    says its version is.

    Raises ``BuildFailure``."""
    places = Places(ROOT, ROOT / "build", without, target or here())
    with _alone(places):
        build = Build(places)
        build.source()
        build.compile()
        build.install_tools()
        build.link(build.pack(hashed=hashed), output)
        return executable.prove([*places.target.emulator, output], {})


def train(target: Target) -> None:
    """Take the interpreter's profile anew. Raises ``BuildFailure``."""
    places = Places(ROOT, ROOT / "build", target=target)
    with _alone(places):
        build = Build(places)
        build.source()
        build.train()


@contextlib.contextmanager
def _alone(places: Places) -> Iterator[None]:
    """See that all is there that a build needs, and that no other build treads on this one."""
    require(missing(os.environ, places.target))
    places.build.mkdir(exist_ok=True)
    with (places.build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def output(target: Target, *, hashed: bool) -> Path:
    """Say where the executable of a flavour goes."""
    folder = ROOT / "dist" / (target.machine if target.foreign else "")
    return folder / ("sniproxy-hashed" if hashed else "sniproxy")


def main(arguments: Sequence[str]) -> int:
    """Build; give the exit status."""
    parser = argparse.ArgumentParser(prog="build.py", description="Build the executable.")
    parser.add_argument("--hashed", action="store_true", help="the flavour with hashed host names")
    parser.add_argument("--target", choices=MACHINES, help="the machine that it is for (this one)")
    parser.add_argument(
        "--output", type=Path, help="where it goes (dist/[TARGET/]sniproxy[-hashed])"
    )
    parser.add_argument("--train", action="store_true", help="take the interpreter's profile anew")
    parser.add_argument(
        "--without",
        action="append",
        choices=MEASURES,
        default=[],
        help="leave a measure out, to see what it brings",
    )
    wanted = parser.parse_args(arguments)
    target = Target(wanted.target) if wanted.target else here()
    result = (wanted.output or output(target, hashed=wanted.hashed)).absolute()
    try:
        if wanted.train:
            train(target)
        else:
            without = frozenset(wanted.without)
            version = make(result, hashed=wanted.hashed, without=without, target=target)
            print(version, f"{result.stat().st_size:,} bytes:", result)
    except BuildFailure as failure:
        print(f"build.py: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
