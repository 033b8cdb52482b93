"""Another machine, emulated: Debian's kernel and Python of that machine, and pytest in it.

``python3 -m tests.emulation MACHINE EXECUTABLE [WORD…]`` boots one QEMU for each size of pages
that Debian has a kernel for, both at once, runs ``pytest WORD…`` (else ``PART``) in it on the
executable, and prints what that says. All that a machine has lies in its memory: it needs no disk,
no network and no KVM.

mmdebstrap only unpacks the packages, so that nothing of the other machine is run here.
"""

import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

REPOSITORY = pathlib.Path(__file__).parents[1]

RELEASE = "trixie"
"""The oldest that has kernels of larger pages, and the pytest that we use."""

PACKAGES = (
    "base-files,busybox-static,coreutils,dash,iproute2,mount,python3,python3-pyte,"
    "python3-pytest,python3-pytest-timeout,python3-trustme,strace,util-linux"
)

PART = (
    # Of the executable, what it opens, and how its interpreter starts.
    "tests/executable",
    # Which looks at the file only, and wants to see it where it was made.
    "--ignore=tests/executable/test_static.py",
    # The whole way of a connection, splices and pipes, workers, and a hand-over.
    "tests/test_relay.py",
    "tests/end_to_end/test_relay.py",
    "tests/end_to_end/test_lookup.py",
    "tests/end_to_end/test_alerts.py",
    "tests/end_to_end/test_workers.py",
    # A third of the time, for what depends on no machine: thirteen starts, traced.
    "--deselect=tests/executable/test_files.py::test_no_traceback_opens_a_file",
    # It asks for the licences of a build.
    "--deselect=tests/executable/test_contents.py",
    # It asks for the kernel's list of sockets, which Debian has in a module, and here are none.
    "--deselect=tests/executable/test_commands.py::test_check_looks_as_from_a_root_directory",
)
"""What is run where no words say otherwise: a few minutes of two cores."""

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
echo "pages of $(python3 -c 'import resource; print(resource.getpagesize())') bytes"
python3 -m pytest -p no:cacheprovider --color=no --nothing-missing --durations=5 \\
  --timeout={timeout} --sniproxy=/opt/repository/dist/sniproxy {words}
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
    """How QEMU makes a machine, and Debian's kernels for it by the bytes of their pages."""

    architecture: str
    kernels: dict[int, str]
    options: tuple[str, ...]
    console: str


MACHINES = {
    "aarch64": Machine(
        "arm64",
        {4096: "arm64", 16384: "arm64-16k"},
        # A processor of 2019, with pages of all sizes; newer ones take longer to emulate.
        ("-machine", "virt", "-cpu", "neoverse-n1"),
        "ttyAMA0",
    ),
}


def make_root(machine: Machine, folder: pathlib.Path) -> pathlib.Path:
    """Unpack a root below ``folder``, and the kernels beside it."""
    root, hook = folder / "root", folder / "kernels.sh"
    hook.write_text(f"set -eu\n{KERNELS.format(kernels=' '.join(machine.kernels.values()))}")
    command = [
        *("mmdebstrap", "--quiet", "--variant=extract", f"--architectures={machine.architecture}"),
        *("--aptopt=Acquire::Languages none", f"--include={PACKAGES}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
        f'--extract-hook=sh {shlex.quote(str(hook))} "$1" {shlex.quote(str(folder))}',
        *(RELEASE, str(root)),
    ]
    subprocess.run(command, check=True)
    return root


def pack(root: pathlib.Path, executable: pathlib.Path, words: Sequence[str]) -> pathlib.Path:
    """Put what is to be run into ``root``; give the archive that a kernel starts with."""
    inside = root / "opt" / "repository"
    for name in BROUGHT:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        copy(REPOSITORY / name, inside / name)
    (inside / "dist").mkdir()
    shutil.copy(executable, inside / "dist" / "sniproxy")
    (root / "init").write_text(_init(words))
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


def _init(words: Sequence[str]) -> str:
    return INIT.format(patience=PATIENCE, timeout=120 * PATIENCE, words=shlex.join(words))


def boot(name: str, machine: Machine, kernel: pathlib.Path, archive: pathlib.Path) -> str:
    """Run a machine until it is off; give what came on its console."""
    command = [
        *(f"qemu-system-{name}", *machine.options, "-accel", "tcg", "-smp", "2", "-m", "1536"),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(archive)),
        *("-append", f"console={machine.console} quiet panic=-1 rdinit=/init"),
    ]
    try:
        return subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        ).stdout
    except subprocess.TimeoutExpired as error:
        return f"{(error.stdout or b'').decode(errors='replace')}\nnot finished after {TIMEOUT} s\n"


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
        archive = pack(make_root(machine, folder), pathlib.Path(executable), words or PART)
        with ThreadPoolExecutor() as pool:
            consoles = pool.map(
                lambda kernel: boot(name, machine, folder / kernel, archive),
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
