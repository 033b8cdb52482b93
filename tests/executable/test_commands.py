"""One file serves every command, by the last component of the name that it is called by."""

import grp
import os
import pathlib
import shutil
import signal
import socket
import subprocess

import pytest

from tests.end_to_end.harness import TIMEOUT, directory_name, wait_until
from tests.executable.test_files import since_exec
from tests.executable.tracing import finished, traced
from tests.status_stub import document, host, ok, stub
from tests.terminal import terminal

COMMANDS = ("sniproxy", "sniproxy-hostname", "sniproxy-check", "sniproxy-listen", "sniproxy-status")


@pytest.fixture(params=COMMANDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def link(executable: pathlib.Path, tmp_path: pathlib.Path, name: str) -> pathlib.Path:
    path = tmp_path / name
    path.symlink_to(executable)
    return path


def run(
    path: pathlib.Path, *arguments: str, stdin: int | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(path), *arguments],
        stdin=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


def test_each_name_is_a_command(link: pathlib.Path, name: str, hashed: bool) -> None:
    flavour = "hashed" if hashed else "plain"
    done = run(link, "--version")
    words = done.stdout.split()
    assert (words[0], words[2:], done.stderr) == (name, [f"({flavour})"], "")
    assert f"usage: {name}" in run(link, "--help").stdout


def test_another_name_is_the_proxy(executable: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "proxy-443"
    path.symlink_to(executable)
    assert run(path, "--version").stdout.startswith("sniproxy ")


@pytest.mark.parametrize("name", ["sniproxy-hostname"], indirect=True)
def test_host_names(link: pathlib.Path, hashed: bool) -> None:
    done = run(link, "🕸💍.ws", "\ufdfa" * 60, "a,b", "*.FAß.de")
    names = ("xn--sr8hvo.ws", "_.xn--fa-hia.de")
    assert (done.returncode, "U+002C COMMA at position 2" in done.stderr) == (1, True)
    assert done.stdout.splitlines() == [directory_name(hashed, name) for name in names]


@pytest.mark.parametrize("name", ["sniproxy-hostname"], indirect=True)
def test_an_interrupt_ends_it_without_a_word(link: pathlib.Path) -> None:
    with subprocess.Popen(
        [link], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a.example\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\n")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, errors) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("name", ["sniproxy-check"], indirect=True)
def test_check(link: pathlib.Path, hashed: bool, tmp_path: pathlib.Path) -> None:
    hosts = tmp_path / "checked"
    directory = hosts / directory_name(hashed, "a.example")
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as backend:
        backend.bind(str(directory / "tls-socket"))
        backend.listen()
        done = run(link, str(hosts))
        assert done.returncode == 0, done.stdout + done.stderr
    assert run(link, str(hosts)).returncode == 1


@pytest.mark.parametrize("name", ["sniproxy-check"], indirect=True)
def test_check_looks_as_from_a_root_directory(
    link: pathlib.Path, hashed: bool, tmp_path: pathlib.Path
) -> None:
    """By hand: it needs no right to change its own, and the kernel's sockets can be asked for."""
    hosts = tmp_path / "checked"
    real, linked = (hosts / directory_name(hashed, name) for name in ("a.example", "b.example"))
    real.mkdir(parents=True)
    linked.symlink_to(f"/{real.name}")
    with socket.socket(socket.AF_UNIX) as backend:
        backend.bind(str(real / "tls-socket"))
        backend.listen()
        done = run(link, "--root", str(hosts), str(hosts))
        assert (done.returncode, done.stdout.count("accepts")) == (0, 2), done.stdout + done.stderr
        assert run(link, "--root", "/", str(hosts)).returncode == 1
        proxy = subprocess.Popen(
            [link.parent / "sniproxy"],
            executable=link,
            stdin=backend,
            cwd=hosts,
            env={"SNIPROXY_WORKERS": "1"},
        )
        try:
            wait_until(lambda: "itself" in run(link, "--root", str(hosts), str(hosts)).stdout)
        finally:
            proxy.kill()
            proxy.wait()


@pytest.mark.parametrize("name", ["sniproxy-status"], indirect=True)
def test_status(link: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "status"
    with stub(path, lambda _: ok(document(host("a.example")))):
        for form in ([], ["--json"]):
            done = run(link, "--socket", str(path), *form)
            assert (done.returncode, "a.example" in done.stdout) == (0, True), done.stderr
        with terminal(str(link), "--socket", str(path), "--watch", "0.1") as shown:
            shown.shows("a.example", "q quit")
            shown.type("n")
            shown.shows("sorted by host")
            shown.type("\x03")
            assert (shown.ends(), shown.is_as_before) == (-signal.SIGINT, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("name", ["sniproxy-status"], indirect=True)
def test_the_group_of_who_may_connect_is_told_without_plugins(
    executable: pathlib.Path, link: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    trace = tmp_path / "trace"
    link.unlink()
    shutil.copyfile(executable, link)  # the other may be in a directory that is closed to strangers
    link.chmod(0o755)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o7777 == 0o700:  # pytest's own
            folder.chmod(0o755)
    with stub(tmp_path / "status", lambda _: None):
        os.chown(tmp_path / "status", 0, grp.getgrnam("adm").gr_gid)
        (tmp_path / "status").chmod(0o660)
        stranger = ["setpriv", "--reuid", str(STRANGER), "--clear-groups"]
        program = traced([*stranger, str(link), "--socket", f"{tmp_path}/status"], trace)
        process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
        _, errors = process.communicate(timeout=TIMEOUT)
    told = f"Permission denied (uid {STRANGER} may not connect: those in the group adm may)\n"
    assert (process.returncode, errors.endswith(told)) == (1, True), errors
    since = since_exec(finished(trace, process.pid), str(link))
    assert not [line for line in since if "nss" in line or ".so" in line]


@pytest.mark.parametrize("name", ["sniproxy-listen"], indirect=True)
def test_listen_gives_the_command_its_environment_back(link: pathlib.Path) -> None:
    for zone in ({}, {"TZ": "Antarctica/Troll"}):
        environment = {"PATH": os.environ["PATH"], "COLOUR": "grün", **zone}
        done = subprocess.run(
            [link, "127.0.0.1:0", "env", "-0"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT,
        )
        given = dict(line.split("=", 1) for line in done.stdout.rstrip("\0").split("\0"))
        # What says that nobody else has the socket.
        assert given.pop("SNIPROXY_BOUND_BY").isdecimal()
        assert given == environment


def test_a_directory_as_standard_input(
    link: pathlib.Path, name: str, tmp_path: pathlib.Path
) -> None:
    """CPython does not start there; what is wrong, if it is, is for the command to say."""
    arguments, status, words = {
        "sniproxy": ([], 2, "a listening socket (socket operation on non-socket)"),
        "sniproxy-hostname": ([], 0, ""),
        "sniproxy-check": (["nowhere"], 2, "nowhere"),
        "sniproxy-listen": (["127.0.0.1:0", "true"], 0, ""),
        "sniproxy-status": (["--socket", "nowhere"], 1, "nowhere"),
    }[name]
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        done = run(link, *arguments, stdin=directory)
    finally:
        os.close(directory)
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr


@pytest.mark.parametrize("name", ["sniproxy-hostname"], indirect=True)
@pytest.mark.parametrize(
    ("directories", "words"),
    [
        ("1</", "can't write to standard output: Bad file descriptor\n"),
        ("2</", ""),
        ("0</ 1</ 2</", ""),
    ],
)
def test_a_directory_as_standard_output(link: pathlib.Path, directories: str, words: str) -> None:
    done = run(pathlib.Path("/bin/sh"), "-c", f'exec "$0" a.example {directories}', str(link))
    assert (done.returncode, done.stderr) == (int("1" in directories), words)


@pytest.mark.parametrize("name", ["sniproxy-hostname"], indirect=True)
def test_a_closed_standard_input_is_known(link: pathlib.Path) -> None:
    """What stands in its place gives no byte and no end."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" <&-', link],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    reason = "can't read names from standard input: Bad file descriptor"
    assert (done.returncode, done.stderr) == (1, f"sniproxy-hostname: {reason}\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
@pytest.mark.parametrize(
    ("called", "path"),
    [
        ("/sniproxy-listen", "/nowhere"),
        ("./sniproxy-listen", "/nowhere"),
        ("sniproxy-listen", "/others:/"),
    ],
)
def test_listen_runs_itself_as_the_proxy(
    executable: pathlib.Path, tmp_path: pathlib.Path, called: str, path: str
) -> None:
    """In a directory that has nothing else, no /proc either, and whatever PATH leads to."""
    jail = tmp_path / "jail"
    (jail / "others").mkdir(parents=True)
    (jail / "others" / "sniproxy").symlink_to("/nowhere")
    (jail / "program-1.0").write_bytes(executable.read_bytes())
    (jail / "program-1.0").chmod(0o755)
    (jail / "sniproxy-listen").symlink_to("program-1.0")

    def enter() -> None:
        os.chroot(jail)
        os.chdir("/")

    done = subprocess.run(
        [called, "--user", "65534", "127.0.0.1:0", "sniproxy", "--version"],
        executable="/sniproxy-listen",
        env={"PATH": path},
        preexec_fn=enter,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert done.stdout.startswith("sniproxy "), done.stderr


STRANGER = 54321
"""A user that no file knows, as that of a DynamicUser= or of a container."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount and be somebody else")
@pytest.mark.parametrize("services", ["files systemd", "systemd files", "nowhere"])
@pytest.mark.parametrize("name", ["sniproxy-listen", "sniproxy-check"], indirect=True)
def test_names_of_users_are_looked_up_without_plugins(
    link: pathlib.Path, name: str, hashed: bool, services: str, tmp_path: pathlib.Path
) -> None:
    """The C library would load those of nsswitch.conf(5), and with them a second C library."""
    configuration = tmp_path / "nsswitch.conf"
    configuration.write_text(f"passwd: {services}\ngroup: {services}\n")
    hosts = tmp_path / "checked"
    directory = hosts / directory_name(hashed, "a.example")
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as backend:
        backend.bind(str(directory / "tls-socket"))
        os.seteuid(STRANGER)  # who listens is who the kernel says the peer is
        try:
            backend.listen()
        finally:
            os.seteuid(0)
        arguments = {
            "sniproxy-listen": ["--user", "nobody-at-all", "127.0.0.1:0", "true"],
            "sniproxy-check": [str(hosts)],
        }[name]
        trace = tmp_path / "trace"
        program = traced([str(link), *arguments], trace)
        process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                'mount --bind "$0" /etc/nsswitch.conf && exec "$@"',
                str(configuration),
                *program,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output, _ = process.communicate(timeout=TIMEOUT)
    lines = finished(trace, process.pid)
    assert not [line for line in lines if "libnss" in line or ".so" in line]
    if name == "sniproxy-listen":
        assert (process.returncode, "there is no such user" in output) == (1, True), output
    else:
        assert (process.returncode, str(STRANGER) in output) == (0, True), output
