"""Another machine, emulated: Debian's kernel and Python of that machine, and pytest in it.

``python3 -m tests.emulation MACHINE EXECUTABLE [WORD…]`` boots one QEMU for each size of pages
that Debian has a kernel for, both at once, runs ``pytest WORD…`` in it on the executable (else
``PROOFS`` in the one and ``PART`` in the other: what is emulated is slow), and prints what that
says. All that a machine has lies in its memory: it needs no disk, no network and no KVM.

mmdebstrap only unpacks the packages, so that nothing of the other machine is run here.
"""

import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.console import console

REPOSITORY = pathlib.Path(__file__).parents[1]

RELEASE = "trixie"
"""The oldest that has kernels of larger pages, and the pytest that we use."""

PACKAGES = (
    "base-files,busybox-static,coreutils,dash,iproute2,mount,python3,python3-pyte,"
    "python3-pytest,python3-pytest-timeout,python3-trustme,strace,util-linux"
)

PROOFS = (
    "tests/executable",
    # These look at the file, where it was made; at a Python 3.11; at the licences of a build.
    "--ignore=tests/executable/test_static.py",
    "--ignore=tests/executable/test_interpreter.py",
    "--ignore=tests/executable/test_contents.py",
    # A third of the time each, for what depends on no machine: what the tools say, with programs
    # that are not there; and thirteen starts, traced.
    "--ignore=tests/executable/test_transcripts.py",
    "--deselect=tests/executable/test_files.py::test_no_traceback_opens_a_file",
    # It asks for the kernel's list of sockets, which Debian has in a module, and here are none.
    "--deselect=tests/executable/test_commands.py::test_check_looks_as_from_a_root_directory",
)
"""Of the executable: what it opens, and what runs in a jail."""

PART = (
    "tests/executable/test_jail.py",
    # Splices and pipes, whose sizes are counted in pages.
    "tests/test_relay.py",
    "tests/end_to_end/test_relay.py",
    # What workers share. (No hand-over: it has seconds, and a start takes as long here.)
    "tests/end_to_end/test_workers.py::test_a_killed_worker_takes_only_its_own",
    "tests/end_to_end/test_workers.py::test_totals_are_summed",
)
"""What may depend on the size of pages."""

BROUGHT = ("bench", "launcher", "pyproject.toml", "sniproxy", "tests")
"""What of the repository goes along."""

TIMEOUT = 1200
"""Seconds for a machine, after which it is given up."""

PATIENCE = 6
"""How many times longer than elsewhere everything may take."""

INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin HOME=/root PYTHONDONTWRITEBYTECODE=1 PATIENCE={patience}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
ip link set lo up
cd /opt/repository
pages=$(python3 -c 'import resource; print(resource.getpagesize())')
echo "pages of $pages bytes"
eval set -- "$(cat "/words/$pages")"
python3 -m pytest -p no:cacheprovider --color=no --nothing-missing --durations=5 \\
  --timeout={timeout} --sniproxy=/opt/repository/dist/sniproxy "$@"
echo "status $?"
busybox poweroff -f
"""

KERNELS = """\
cd "$1" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
for kernel in {kernels}; do
  package=$(apt-cache depends "linux-image-$kernel" | sed -n 's/.*Depends: //p' | head -n 1)
  apt-get -qq -o APT::Sandbox::User=root download "$package"
  dpkg-deb --fsys-tarfile "$package"_*.deb | tar -xO --wildcards './boot/vmlinuz-*' > "$2/$kernel"
  rm "$package"_*.deb
done
"""
"""Fetches them; run by mmdebstrap on the root."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How QEMU makes a machine, and Debian's kernels for it by the bytes of their pages, each with
    what is run on it where no words say otherwise."""

    architecture: str
    kernels: dict[int, tuple[str, tuple[str, ...]]]
    options: tuple[str, ...]
    console: str


MACHINES = {
    "aarch64": Machine(
        "arm64",
        {4096: ("arm64", PROOFS), 16384: ("arm64-16k", PART)},
        # A processor of 2019, with pages of all sizes; newer ones take longer to emulate.
        ("-machine", "virt", "-cpu", "neoverse-n1"),
        "ttyAMA0",
    ),
}


def make_root(machine: Machine, folder: pathlib.Path) -> pathlib.Path:
    """Unpack a root below ``folder``, and the kernels beside it."""
    root, hook = folder / "root", folder / "kernels.sh"
    kernels = " ".join(kernel for kernel, _ in machine.kernels.values())
    hook.write_text(f"set -eu\n{KERNELS.format(kernels=kernels)}")
    command = [
        *("mmdebstrap", "--quiet", "--variant=extract", f"--architectures={machine.architecture}"),
        *("--aptopt=Acquire::Languages none", f"--include={PACKAGES}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
        f'--extract-hook=sh {shlex.quote(str(hook))} "$1" {shlex.quote(str(folder))}',
        *(RELEASE, str(root)),
    ]
    subprocess.run(command, check=True)
    return root


def pack(
    root: pathlib.Path, executable: pathlib.Path, words: Mapping[int, Sequence[str]]
) -> pathlib.Path:
    """Put the repository and what pytest is told, by the size of pages, into ``root``; give the
    archive that a kernel starts with."""
    inside = root / "opt" / "repository"
    for name in BROUGHT:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        copy(REPOSITORY / name, inside / name)
    (inside / "dist").mkdir()
    shutil.copy(executable, inside / "dist" / "sniproxy")
    (root / "words").mkdir(exist_ok=True)
    for pages, told in words.items():
        (root / "words" / str(pages)).write_text(shlex.join(told))
    (root / "init").write_text(INIT.format(patience=PATIENCE, timeout=120 * PATIENCE))
    (root / "init").chmod(0o755)
    # What the packages would have made if they had been installed.
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\nadm:x:4:\n")
    (root / "etc" / "nsswitch.conf").touch()
    archive = root.with_suffix(".cpio")
    pack_it = "find . -print0 | cpio --null --create --format=newc --quiet"
    with archive.open("wb") as file:
        subprocess.run(["sh", "-c", pack_it], cwd=root, stdout=file, check=True)
    return archive


def boot(name: str, machine: Machine, kernel: pathlib.Path, archive: pathlib.Path) -> str:
    """Run a machine until it is off; give what came on its console."""
    command = [
        *(f"qemu-system-{name}", *machine.options, "-accel", "tcg", "-smp", "2", "-m", "1536"),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(archive)),
        *("-append", f"console={machine.console} quiet panic=-1 rdinit=/init"),
    ]
    return console(command, TIMEOUT)


def main(arguments: Sequence[str]) -> int:
    """Boot all, print what came of each; give the exit status."""
    name, executable, *words = arguments
    machine = MACHINES.get(name)
    if machine is None:
        print(f"{name} can't be emulated, but {' and '.join(MACHINES)} can", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="sniproxy-emulation-") as temporary:
        folder = pathlib.Path(temporary)
        folder.chmod(0o755)
        told = {pages: words or part for pages, (_, part) in machine.kernels.items()}
        archive = pack(make_root(machine, folder), pathlib.Path(executable), told)
        with ThreadPoolExecutor() as pool:
            consoles = pool.map(
                lambda kernel: boot(name, machine, folder / kernel[0], archive),
                machine.kernels.values(),
            )
            passed = []
            for pages, console in zip(machine.kernels, consoles, strict=True):
                print(f"{name}, pages of {pages} bytes:\n{console}", flush=True)
                said = console.splitlines()
                passed.append(f"pages of {pages} bytes" in said and "status 0" in said)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
