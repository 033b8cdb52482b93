"""Target: the machine that the executable is for, this one or another.

For another the same things are made by Debian's cross compiler, and what has to run on the way runs
here: the build's own Python for CPython's scripts, PyOxidizer, and an emulator for the first start.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from . import commands
from .failure import BuildFailure

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
"""For which the executable can be built, and Debian's names for them: those that PyOxidizer is
there for. Both have 64 bits."""


@dataclass(frozen=True, slots=True)
class Target:
    """A machine by the kernel's name for it."""

    machine: str

    @property
    def foreign(self) -> bool:
        """Whether it is another machine than this one."""
        return self.machine != platform.machine()

    @property
    def triple(self) -> str:
        """Name the machine as Rust does. The C library is GNU's, linked statically: nothing here
        resolves names or loads plugins, which alone would need its shared form."""
        return f"{self.machine}-unknown-linux-gnu"

    @property
    def debian(self) -> str:
        """Name the machine as GNU's tools and Debian's folders do."""
        return f"{self.machine}-linux-gnu"

    def tool(self, name: str) -> str:
        """Name a tool of GNU's that works on this machine's files."""
        return f"{self.debian}-{name}" if self.foreign else name

    def package(self, name: str) -> str:
        """Name Debian's package of such a tool, or of a library."""
        if not self.foreign:
            return name
        if name.startswith("lib"):
            return f"{name}:{MACHINES[self.machine]}"
        return f"{name}-{self.debian.replace('_', '-')}"

    @property
    def rust(self) -> dict[str, str]:
        """Give the environment in which ``rustc`` and ``cargo`` make programs of this machine: of
        several Rusts on the path only one may have its library. Raises ``BuildFailure``."""
        if not self.foreign:
            return {}
        path = os.environ["PATH"]
        for folder in path.split(os.pathsep):
            rustc = Path(folder, "rustc")
            if os.access(rustc, os.X_OK) and self._has_library(rustc):
                return {"PATH": f"{folder}{os.pathsep}{path}"}
        package = f"libstd-rust-web-dev:{MACHINES[self.machine]} (Debian 12)"
        raise BuildFailure(f"a rustc with the library for {self.triple}: {package}")

    def _has_library(self, rustc: Path) -> bool:
        command = (rustc, "--print", "target-libdir", "--target", self.triple)
        return Path(commands.output_of(command).strip()).is_dir()

    @property
    def emulator(self) -> tuple[str, ...]:
        """What stands before a program of this machine to run it here."""
        return (f"qemu-{self.machine}-static",) if self.foreign else ()


def here() -> Target:
    """Give this machine."""
    return Target(platform.machine())
