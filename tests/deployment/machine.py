"""A Debian with systemd, booted in a container, that runs the tests of ``inside`` and reports.

mmdebstrap makes the root, systemd-nspawn boots it in a network of its own. One unit runs pytest and
then ends the container; what it reports is JUnit's XML, read here.
"""

import dataclasses
import os
import pathlib
import re
import select
import shutil
import subprocess
from collections.abc import Mapping
from xml.etree import ElementTree

import trustme

REPOSITORY = pathlib.Path(__file__).parents[2]
INSIDE = pathlib.Path(__file__).parent / "inside"

FILES = (
    "test_systemd.py",
    "test_users.py",
    "test_variants.py",
    "test_operations.py",
    "test_package.py",
    "test_inetd.py",
    "test_s6.py",
    "test_end.py",
)
"""The order in which they run: the last one removes the package."""

TIMEOUT = 600
"""Seconds for the whole life of a container."""

_INCLUDED = (
    "acl,caddy,execline,netbase,openbsd-inetd,passwd,pebble,procps,python3,python3-pytest,"
    "python3-pytest-timeout,s6,systemd,systemd-sysv,util-linux"
)

_UNIT = """\
[Unit]
Description=the tests

[Service]
Type=oneshot
WorkingDirectory=/opt/inside
Environment=PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
ExecStart=python3 -m pytest -p no:cacheprovider -v --durations=12 --timeout=90 \\
  --junitxml=report.xml {files}
ExecStopPost=systemctl exit 0 --force
StandardOutput=file:/opt/inside/output
StandardError=inherit
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What the tests inside came to: by ``file::function``, "" for passed or what was wrong."""

    outcomes: Mapping[str, str]
    output: str


def why_not() -> str | None:
    """Say why no container can be booted here; None if it can."""
    if os.geteuid() != 0:
        return "only root can boot a container"
    for program, package in (
        ("mmdebstrap", "mmdebstrap"),
        ("systemd-nspawn", "systemd-container"),
    ):
        if not shutil.which(program):
            return f"there is no {program}: install {package} (Debian)"
    try:
        _own_cgroup()
    except OSError as error:
        return f"a container needs a control group of its own: {error}"
    return None


def boot(release: str, root: pathlib.Path, packages: Mapping[str, pathlib.Path]) -> Report:
    """Make a root of a Debian release, boot it, run all tests in it."""
    _make_root(release, root)
    inside = root / "opt" / "inside"
    shutil.copytree(INSIDE, inside, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "docs" / "operations.md", inside)
    for name, package in packages.items():
        shutil.copyfile(package, inside / f"{name}.deb")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(inside / "ca.pem"))
    certificate = authority.issue_cert("*.promise.example", "localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(inside / "server.pem"))
    units = root / "etc" / "systemd" / "system"
    (units / "tests.service").write_text(_UNIT.format(files=" ".join(FILES)))
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants" / "tests.service").symlink_to("../tests.service")
    (units / "inetd.service").symlink_to("/dev/null")

    console = _run_container(root)
    output = inside / "output"
    text = console + (output.read_text() if output.exists() else "")
    return Report(_outcomes(inside / "report.xml"), text)


def _make_root(release: str, root: pathlib.Path) -> None:
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=essential",
            "--aptopt=Acquire::Languages none",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            f"--include={_INCLUDED}",
            '--customize-hook=for user in alice bob; do chroot "$1" useradd -m $user; done',
            release,
            str(root),
        ],
        check=True,
    )


def _run_container(root: pathlib.Path) -> str:
    """Boot until the tests have ended; give what came on the console."""
    cgroup = _own_cgroup() / f"sniproxy-test-{os.getpid()}-{root.name}"
    cgroup.mkdir()
    command = [
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
    try:
        # The container takes over the control group that it is started in.
        done = subprocess.run(
            ["sh", "-c", 'echo $$ > "$0" && exec "$@"', cgroup / "cgroup.procs", *command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )
        return done.stdout
    except subprocess.TimeoutExpired as error:
        return f"not finished after {TIMEOUT} s: {error.stdout!r}\n"
    finally:
        _remove(cgroup)


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
    if not report.exists():
        return {}
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [child for child in case if child.tag in {"failure", "error", "skipped"}]
        text = "\n".join(f"{one.tag}: {one.get('message')}\n{one.text}" for one in wrong)
        outcomes[f"{case.get('classname')}.py::{case.get('name')}"] = text
    return outcomes
