"""A Debian with systemd, booted, that runs the tests of ``inside`` and reports.

mmdebstrap makes the root; systemd-nspawn boots it in a network of its own or, where that can't be,
QEMU does with Debian's kernel and the root on a disk. It boots twice, and the first boot ends as by
a power cut. In each a unit runs pytest and then ends the machine; what it reports is JUnit's XML,
read here.
"""

import dataclasses
import os
import pathlib
import re
import select
import shutil
import subprocess
from collections.abc import Callable, Mapping
from xml.etree import ElementTree

import trustme

from tests.console import console

REPOSITORY = pathlib.Path(__file__).parents[2]
INSIDE = pathlib.Path(__file__).parent / "inside"

BOOTS = (
    ("test_takeover.py", "test_before_the_power_cut.py"),
    (
        "test_after_the_power_cut.py",
        "test_systemd.py",
        "test_users.py",
        "test_variants.py",
        "test_balancers.py",
        "test_status_socket.py",
        "test_monitoring.py",
        "test_operations.py",
        "test_package.py",
        "test_restart.py",
        "test_inetd.py",
        "test_s6.py",
        "test_end.py",
    ),
)
"""The files of each boot, in order: the last one removes the package, and installs the archive."""

FILES = tuple(file for files in BOOTS for file in files)

FIGURES = {"RESTARTS", "CONNECTIONS"}
"""Variables that go along to the tests inside, which become longer by them and tell figures."""

TIMEOUT = 600
"""Seconds for each boot of a container; of another machine, times its patience."""

_INCLUDED = (
    "acl,apt,caddy,execline,iproute2,logrotate,needrestart,netbase,nginx-light,openbsd-inetd,passwd,"
    "pebble,procps,prometheus,python3,python3-pytest,python3-pytest-timeout,s6,sniproxy,systemd,"
    "systemd-sysv,util-linux,xz-utils"
)
"""The other program of our name too: ours takes its place."""

_ADDED = {"trixie": ",snid"}
"""What older releases have not."""

_UNIT = """\
[Unit]
Description=the tests of a boot
ConditionPathExists=!/opt/inside/{report}
{condition}

[Service]
Type=oneshot
WorkingDirectory=/opt/inside
Environment=PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATIENCE={patience} {figures}
ExecStart=python3 -m pytest -p no:cacheprovider -v --durations=12 --timeout={timeout} \\
  --junitxml={report} {files}
ExecStopPost=systemctl poweroff {force}
StandardOutput=append:/opt/inside/output
StandardError=inherit
"""

_OTHER_SNIPROXY = (
    'systemctl --quiet --root="$1" enable sniproxy.service && '
    'mkdir "$1/opt/other" && cd "$1/opt/other" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" && '
    "apt-get -qq download sniproxy"
)
"""Has the other program start at the boot, and brings its package for the way back; run by
mmdebstrap on the root."""

_OTHER_CONFIGURATION = """\
user daemon
listener 443 {
    proto tls
    table hosts
}
table hosts {
    other.example unix:/run/other.sock
}
"""

_KERNEL = (
    'cd "$1" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" && '
    "package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p') && "
    'apt-get -qq download "$package" && '
    "dpkg-deb --fsys-tarfile linux-*.deb | tar -xO --wildcards './boot/vmlinuz-*' > vmlinuz && "
    "rm linux-*.deb"
)
"""Fetches a kernel that needs no module to find its root; run by mmdebstrap on the root."""

_ARGUMENTS = (
    *("root=/dev/nvme0n1", "rw", "console=ttyS0", "quiet", "panic=-1", "audit=1"),
    # Debian 13 reads the audit log only when asked; what the kernel prints of it has gaps.
    "systemd.wants=systemd-journald-audit.socket",
)
"""The kernel's command line."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What the tests inside came to: by ``file::function``, "" for passed or what was wrong."""

    outcomes: Mapping[str, str]
    output: str


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """A way to boot a root.

    ``patience`` is how many times longer than in a container everything may take; ``hooks`` are
    mmdebstrap's; ``run`` boots as often as there are tests for, until they have ended, and gives
    what came on the console.
    """

    patience: int
    hooks: tuple[str, ...]
    why_not: Callable[[], str | None]
    run: Callable[[pathlib.Path, int], str]


def choose(name: str | None) -> Machine:
    """Give the machine that is asked for, or the first that can run. Raises LookupError if none.

    A container comes first: it needs a minute where emulation needs many. It is what CI uses, so
    that .ci/run installs no QEMU.
    """
    reasons = []
    for candidate in [name] if name else MACHINES:
        reason = MACHINES[candidate].why_not()
        if reason is None:
            return MACHINES[candidate]
        reasons.append(f"{candidate}: {reason}")
    raise LookupError("; ".join(reasons))


def _why_no_container() -> str | None:
    reason = _why_no_root({"systemd-nspawn": "systemd-container"})
    if reason:
        return reason
    try:
        _own_cgroup()
    except OSError as error:
        return f"a container needs a control group of its own: {error}"
    return None


def _why_no_emulator() -> str | None:
    if os.uname().machine != "x86_64":
        return "the kernel that it boots is for x86_64"
    return _why_no_root(
        {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs"}
    )


def _why_no_root(programs: Mapping[str, str]) -> str | None:
    """Say why no root can be made and booted by these programs, which are in those packages."""
    if os.geteuid() != 0:
        return "only root can make a root to boot"
    for program, package in {"mmdebstrap": "mmdebstrap", **programs}.items():
        if not shutil.which(program):
            return f"there is no {program}: install {package} (Debian)"
    return None


def boot(
    machine: Machine, release: str, root: pathlib.Path, brought: Mapping[str, pathlib.Path]
) -> Report:
    """Make a root of a Debian release, boot it, run all tests in it.

    ``brought`` are files that the tests want beside them, by the names that they have there."""
    _make_root(release, root, machine.hooks)
    inside = root / "opt" / "inside"
    shutil.copytree(INSIDE, inside, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "README.md", inside)
    shutil.copytree(REPOSITORY / "docs", inside / "docs")
    for name, file in brought.items():
        shutil.copyfile(file, inside / name)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(inside / "ca.pem"))
    certificate = authority.issue_cert("*.promise.example", "shop.example", "localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(inside / "server.pem"))
    (root / "etc" / "sniproxy.conf").write_text(_OTHER_CONFIGURATION)
    units = root / "etc" / "systemd" / "system"
    patience = machine.patience
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    condition = ""
    for boot_number, files in enumerate(BOOTS):
        last = files is BOOTS[-1]
        name, report = f"tests-{boot_number}.service", f"report-{boot_number}.xml"
        unit = _UNIT.format(
            files=" ".join(files),
            report=report,
            condition=condition,
            # Twice, nothing is stopped first.
            force="--force" if last else "--force --force",
            patience=patience,
            figures=" ".join(f"{name}={os.environ[name]}" for name in FIGURES & os.environ.keys()),
            timeout=90 * patience,
        )
        (units / name).write_text(unit)
        (units / "multi-user.target.wants" / name).symlink_to(f"../{name}")
        condition = f"ConditionPathExists=/opt/inside/{report}"
    # The tests start their own.
    for name in ("inetd", "prometheus"):
        (units / f"{name}.service").symlink_to("/dev/null")

    said = machine.run(root, TIMEOUT * patience)
    if (inside / "figures").exists():
        print(f"{release}:\n{(inside / 'figures').read_text()}")
    output = inside / "output"
    text = said + (output.read_text() if output.exists() else "")
    outcomes: dict[str, str] = {}
    for report in sorted(inside.glob("report-*.xml")):
        outcomes |= _outcomes(report)
    return Report(outcomes, text)


def _make_root(release: str, root: pathlib.Path, hooks: tuple[str, ...]) -> None:
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=essential",
            "--aptopt=Acquire::Languages none",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            f"--include={_INCLUDED}{_ADDED.get(release, '')}",
            '--customize-hook=for user in alice bob; do chroot "$1" useradd -m $user; done',
            f"--customize-hook={_OTHER_SNIPROXY}",
            *(f"--customize-hook={hook}" for hook in hooks),
            release,
            str(root),
        ],
        check=True,
    )


def _run_container(root: pathlib.Path, seconds: int) -> str:
    """Boot in a control group that is made for it, and ended with all that is in it."""
    cgroup = _own_cgroup() / f"sniproxy-test-{os.getpid()}-{root.name}"
    cgroup.mkdir()
    command = [
        "env",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
        "systemd-nspawn",
        "--boot",
        f"--directory={root}",
        f"--machine={cgroup.name}",
        "--register=no",
        "--keep-unit",
        "--private-network",
        "--console=pipe",
        "--link-journal=no",
        "--resolv-conf=off",
    ]
    # The container takes over the control group that it is started in.
    entered = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{cgroup}/cgroup.procs", *command]
    try:
        return "".join(console(entered, seconds) for _ in BOOTS)
    finally:
        _remove(cgroup)


def _run_emulator(root: pathlib.Path, seconds: int) -> str:
    """Boot without KVM also where there is one: it is not to matter which, or whether it works."""
    disk = root.with_suffix(".disk")
    make = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, disk, "3G"]
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    command = [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg"),
        *("-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults", "-no-reboot"),
        *("-display", "none", "-serial", "stdio", "-kernel", f"{root}/vmlinuz"),
        *("-append", " ".join(_ARGUMENTS)),
        *("-drive", f"file={disk},format=raw,if=none,id=root,cache=unsafe"),
        *("-device", "nvme,drive=root,serial=root"),
    ]
    said = "".join(console(command, seconds) for _ in BOOTS)
    # What the tests have written is put where a container would have left it.
    shutil.rmtree(root / "opt" / "inside")
    dump = ["debugfs", "-R", f'rdump /opt/inside "{root}/opt"', disk]
    subprocess.run(dump, check=True, capture_output=True)
    return said


def _remove(cgroup: pathlib.Path) -> None:
    """End what may still run in a control group, and remove it when all of it is gone."""
    (cgroup / "cgroup.kill").write_text("1")
    events = cgroup / "cgroup.events"
    with events.open() as file, select.epoll() as changes:
        changes.register(file, select.EPOLLPRI)
        while "populated 1" in events.read_text():
            changes.poll(1)
    for folder, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(folder)


def _own_cgroup() -> pathlib.Path:
    """Find this process's control group of version 2. Raises OSError if none can be made in it."""
    mounts = pathlib.Path("/proc/self/mountinfo").read_text()
    mounted = re.search(r"^(?:\S+ ){3}(\S+) (\S+) .* - cgroup2 ", mounts, re.MULTILINE)
    if mounted is None:
        raise OSError("no file system of type cgroup2 is mounted")
    groups = pathlib.Path("/proc/self/cgroup").read_text()
    (own,) = re.findall(r"^0::(.*)$", groups, re.MULTILINE)
    base, where = mounted.groups()
    path = pathlib.Path(where, os.path.relpath(own, base))
    probe = path / f"sniproxy-probe-{os.getpid()}"
    probe.mkdir()
    probe.rmdir()
    return path


def _outcomes(report: pathlib.Path) -> dict[str, str]:
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [child for child in case if child.tag in {"failure", "error", "skipped"}]
        text = "\n".join(f"{one.tag}: {one.get('message')}\n{one.text}" for one in wrong)
        outcomes[f"{case.get('classname')}.py::{case.get('name')}"] = text
    return outcomes


MACHINES: Mapping[str, Machine] = {
    "nspawn": Machine(1, (), _why_no_container, _run_container),
    "qemu": Machine(6, (_KERNEL,), _why_no_emulator, _run_emulator),
}
"""By the name that ``--machine`` takes, in the order of preference."""
