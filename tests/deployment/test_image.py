"""The image, run as its configuration says: in a root of its own by unshare(1), and by podman."""

import gzip
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import sniproxy
from launcher.chain import image as images
from tests.deployment.machine import REPOSITORY
from tests.end_to_end.harness import Backend, read_all, read_exactly
from tests.hello import hello
from tests.ports import free_port

PROGRAM = "/program/sniproxy"
"""Where a program is mounted that is to be replaced while the container runs."""

HELLO = hello("blog.example")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a container"),
    pytest.mark.timeout(600),  # podman copies all of the image
]


def run(*command: str | pathlib.Path, **environment: str) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(**environment: str) -> pathlib.Path:
    run("make", "-C", REPOSITORY, "image", f"PYTHON={sys.executable}", **environment)
    name = f"sniproxy-{sniproxy.__version__}-{os.uname().machine}.oci.tar"
    return REPOSITORY / "dist" / name


@pytest.fixture(scope="module")
def file(works: object) -> pathlib.Path:
    return make()


def test_equal_executables_give_equal_bytes(file: pathlib.Path) -> None:
    before = file.read_bytes()
    assert make(TZ="Asia/Kathmandu", LC_ALL="C").read_bytes() == before


@pytest.fixture(scope="module")
def configuration(file: pathlib.Path) -> dict[str, Any]:
    blobs = images.read(file).blobs.values()
    (found,) = [one for one in map(parsed, blobs) if "rootfs" in one]
    config: dict[str, Any] = found["config"]
    return config


def parsed(blob: bytes) -> dict[str, Any]:
    return json.loads(blob) if blob.startswith(b"{") else {}


class Unshare:
    """A container of namespaces and nothing else."""

    def __init__(self, file: pathlib.Path, folder: pathlib.Path, config: dict[str, Any]) -> None:
        self.folder, self._root, self._config = folder, folder / "root", config
        (layer,) = [blob for blob in images.read(file).blobs.values() if blob[:2] == b"\x1f\x8b"]
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as tar:
            tar.extractall(self._root)
        (self._root / "program").mkdir()

    def command(self, mounts: dict[str, pathlib.Path], words: list[str]) -> list[str]:
        bind = 'mount --bind -o ro "$1" "$2"'
        uid, gid = self._config["User"].split(":")
        script = ["set -e", f"mount --bind -o ro {self._root} {self._root}"]
        script += [
            bind.replace("$1", str(source)).replace("$2", f"{self._root}{target}")
            for target, source in mounts.items()
        ]
        script.append('exec "$@"')
        # The command's own file: --root is entered before it is looked for.
        enter = ["setpriv", "--clear-groups", "--no-new-privs", "unshare", f"--root={self._root}"]
        enter += [f"--wd={self._config['WorkingDir']}", f"--setgid={gid}", f"--setuid={uid}"]
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        inside = ["sh", "-c", "; ".join(script), "sh", *enter, f"/usr/bin/{words[0]}", *words[1:]]
        return ["unshare", *namespaces, *inside]

    def pid(self, process: subprocess.Popen[bytes]) -> int:
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return int(children.read_text())


class Podman:
    """What users have. Where the machine's control groups are not of version 2 alone, such are
    mounted in their place: crun wants them, and does nothing with them here."""

    def __init__(self, file: pathlib.Path, folder: pathlib.Path, _: dict[str, Any]) -> None:
        for program in ("podman", "crun"):
            if not shutil.which(program):
                pytest.skip(f"{program} is missing: install {program}")
        self.folder, self._pidfile = folder, folder / "pid"
        places = [f"--{name}={folder}/{name}" for name in ("root", "runroot", "tmpdir")]
        ways = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]
        self._podman = ["podman", *places, *ways, "--runtime=crun"]
        loaded = run(*self._podman, "load", "--quiet", f"--input={file}")
        self._name = f"localhost/sniproxy:{sniproxy.__version__}"
        assert loaded == f"Loaded image: {self._name}\n"

    def command(
        self, mounts: dict[str, pathlib.Path], words: list[str], network: str = "host"
    ) -> list[str]:
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        rights = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"]
        machine = [f"--network={network}", "--cgroups=disabled", "--log-driver=none"]
        limits = [f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=1000:1000"]
        volumes = [f"--volume={source}:{target}:ro" for target, source in mounts.items()]
        options = [*rights, *machine, *limits, *volumes, "--rm", f"--pidfile={self._pidfile}"]
        ours = 'mount -t cgroup2 none /sys/fs/cgroup; export LISTEN_PID=$$; exec "$@"'
        return [
            "unshare",
            "--mount",
            "sh",
            "-euc",
            ours,
            "sh",
            *self._podman,
            "run",
            *options,
            self._name,
            *words,
        ]

    def pid(self, process: subprocess.Popen[bytes]) -> int:
        return int(self._pidfile.read_text())


def backend_in(hosts: pathlib.Path) -> Backend:
    """Have a host with a backend to which anybody may connect."""
    (hosts / "blog.example").mkdir(parents=True)
    backend = Backend(hosts / "blog.example")
    (hosts / "blog.example" / "tls-socket").chmod(0o666)
    return backend


def wait_for_a_start(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    said = b""
    while b"event=start" not in (line := process.stderr.readline()):
        said += line
        assert line, said


class Container:
    """A running container, its hosts directory, and a backend in it."""

    def __init__(
        self, runner: Unshare | Podman, folder: pathlib.Path, command: list[str], program: bool
    ) -> None:
        hosts = folder / "hosts"
        self.backend = backend_in(hosts)
        mounts = {images.HOSTS: hosts}
        self.program = folder / "program"
        if program:
            self.program.mkdir()
            shutil.copy(REPOSITORY / "dist" / "sniproxy", self.program)
            mounts["/program"] = self.program
        self.port = free_port()
        words = [word.replace(f":{images.PORT}", f"127.0.0.1:{self.port}") for word in command]
        if program:
            words[-1] = PROGRAM
        self.process = subprocess.Popen(runner.command(mounts, words), stderr=subprocess.PIPE)
        wait_for_a_start(self.process)
        self.pid = runner.pid(self.process)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Have a connection relayed; give both of its ends."""
        client = socket.create_connection(("127.0.0.1", self.port), 20)
        client.sendall(HELLO)
        accepted = self.backend.accept()
        assert read_exactly(accepted, len(HELLO)) == HELLO
        return client, accepted

    def stop(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.backend.close()


@pytest.fixture(params=[Unshare, Podman])
def runner(
    request: pytest.FixtureRequest,
    file: pathlib.Path,
    configuration: dict[str, Any],
) -> Iterator[Unshare | Podman]:
    # Podman takes no long path, and the user of the image has to come by.
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        os.chmod(folder, 0o755)
        yield request.param(file, pathlib.Path(folder), configuration)


@pytest.fixture
def container(
    request: pytest.FixtureRequest,
    runner: Unshare | Podman,
    configuration: dict[str, Any],
) -> Iterator[Container]:
    program = getattr(request, "param", False)
    running = Container(runner, runner.folder, configuration["Cmd"], program)
    yield running
    running.close()


def test_it_serves_without_any_right(container: Container) -> None:
    client, accepted = container.connect()
    accepted.sendall(b"through the container")
    accepted.close()
    assert read_all(client) == b"through the container"
    client.close()
    status = pathlib.Path(f"/proc/{container.pid}/status").read_text()
    uid, gid = images.USER.split(":")
    shown = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
    assert shown["Uid"].split() == [uid] * 4
    assert shown["Gid"].split() == [gid] * 4
    assert shown["Groups"].strip() in {"", gid}
    assert [int(shown[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")] == [0, 0, 0]
    assert shown["NSpid"].split()[-1] == "1"
    assert container.stop() == 0


@pytest.mark.parametrize("container", [True], indirect=True)
def test_another_program_goes_on_with_its_connections(container: Container) -> None:
    client, accepted = container.connect()
    fresh = container.program / "new"
    shutil.copy(container.program / "sniproxy", fresh)
    fresh.replace(container.program / "sniproxy")
    os.kill(container.pid, signal.SIGUSR2)
    wait_for_a_start(container.process)
    runs = os.stat(f"/proc/{container.pid}/exe").st_ino
    assert runs == (container.program / "sniproxy").stat().st_ino
    accepted.sendall(b"still here")
    accepted.close()
    assert read_all(client) == b"still here"
    client.close()
    assert container.stop() == 0


@pytest.mark.parametrize("runner", [Podman], indirect=True)
def test_clients_of_a_socket_that_is_passed_wait_for_the_next_container(runner: Podman) -> None:
    """As systemd passes it. The container has no network of its own."""
    hosts = runner.folder / "hosts"
    backend = backend_in(hosts)
    command = runner.command({images.HOSTS: hosts}, ["sniproxy"], network="none")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # The shell puts it where sd_listen_fds(3) looks.
        passing = ["bash", "-c", f'exec "$@" 3<&{listening.fileno()}', "sh", *command]
        for _ in range(2):
            with socket.create_connection(listening.getsockname(), 20) as client:
                client.sendall(HELLO)
                process = subprocess.Popen(
                    passing,
                    pass_fds=[listening.fileno()],
                    stderr=subprocess.PIPE,
                    env=os.environ | {"LISTEN_FDS": "1"},
                )
                wait_for_a_start(process)
                with backend.accept() as accepted:
                    assert read_exactly(accepted, len(HELLO)) == HELLO
                    accepted.sendall(b"served")
                assert read_all(client) == b"served"
            os.kill(runner.pid(process), signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 0
    backend.close()
