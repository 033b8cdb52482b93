"""`make install`, the package as lintian sees it, and the container's recipe."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess

import pytest

from tests.deployment.machine import REPOSITORY
from tests.end_to_end.harness import Backend, read_all
from tests.hello import hello

COMMANDS = ("sniproxy-check", "sniproxy-hostname", "sniproxy-listen")


def make(target: str, destination: pathlib.Path, prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-C", REPOSITORY, target, f"DESTDIR={destination}", f"PREFIX={prefix}"],
        check=False,
        capture_output=True,
        text=True,
    )


def files(root: pathlib.Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local", "/opt/sni proxy"])
def test_install_and_uninstall(
    executable: pathlib.Path, tmp_path: pathlib.Path, prefix: str
) -> None:
    done = make("install", tmp_path, prefix)
    assert done.returncode == 0, done.stderr
    installed = tmp_path / prefix.lstrip("/")
    assert (installed / "bin" / "sniproxy").read_bytes() == executable.read_bytes()
    for command in COMMANDS:
        line = subprocess.run(
            [installed / "bin" / command, "--version"], check=True, capture_output=True, text=True
        )
        assert line.stdout.startswith(f"{command} ")
    pages = {path.name for path in (REPOSITORY / "docs" / "man").glob("*.[18]")}
    assert pages == {path.name for path in (installed / "share" / "man").rglob("*.?")}
    assert {"lib/systemd/system/sniproxy.socket", "lib/sysusers.d/sniproxy.conf"} < files(installed)

    (installed / "bin" / "other").touch()
    done = make("uninstall", tmp_path, prefix)
    assert done.returncode == 0, done.stderr
    assert files(installed) == {"bin/other"}


def test_every_path_follows_the_prefix(executable: pathlib.Path, tmp_path: pathlib.Path) -> None:
    make("install", tmp_path, "/opt/proxy")
    texts = [path.read_text() for path in (tmp_path / "opt/proxy").rglob("*.*") if path.is_file()]
    texts += [path.read_text() for path in (tmp_path / "opt/proxy").rglob("run")]
    named = {path for text in texts for path in re.findall(r"/\S*/bin/sniproxy\S*", text)}
    assert named == {"/opt/proxy/bin/sniproxy", "/opt/proxy/bin/sniproxy-listen"}


def test_without_an_executable_it_says_what_to_do(tmp_path: pathlib.Path) -> None:
    for name in ("chroot", "docs"):
        shutil.copytree(REPOSITORY / name, tmp_path / "source" / name)
    for script, arguments in (("install", ["/d", "/p"]), ("debian/build", [tmp_path / "out"])):
        done = subprocess.run(
            ["sh", tmp_path / "source" / "chroot" / script, *arguments],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "run `make executable` first" in done.stderr


@pytest.mark.skipif(not shutil.which("lintian"), reason="lintian is missing: install lintian")
def test_lintian_finds_nothing_wrong(packages: dict[str, pathlib.Path]) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=error,warning", packages["old"]],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_commit_gives_the_same_package(
    packages: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    build = REPOSITORY / "chroot" / "debian" / "build"
    subprocess.run(["sh", build, tmp_path], check=True, capture_output=True)
    assert (tmp_path / packages["old"].name).read_bytes() == packages["old"].read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the root directory")
def test_the_container_s_recipe(executable: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Do what the recipe says with unshare(1), on a port of our own."""
    recipe = (REPOSITORY / "chroot" / "Dockerfile").read_text()
    steps = dict(re.findall(r"^([A-Z]+) (.*)$", recipe, re.MULTILINE))
    assert steps["FROM"] == "scratch"
    context, root = tmp_path / "context", tmp_path / "root"
    make("install", context, "")
    source, target = steps["COPY"].split()
    shutil.copytree(context / source, root / target.strip("/"), symlinks=True)
    hosts = root / steps["WORKDIR"].strip("/")
    (hosts / "blog.example").mkdir(parents=True)
    backend = Backend(hosts / "blog.example")
    (hosts / "blog.example" / "tls-socket").chmod(0o666)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    entry = [word.replace(":443", f"127.0.0.1:{port}") for word in json.loads(steps["ENTRYPOINT"])]
    for parent in (root, *root.parents):
        if parent.is_relative_to(tmp_path.parents[1]):
            parent.chmod(0o755)
    process = subprocess.Popen(
        ["unshare", f"--root={root}", f"--wd={steps['WORKDIR']}", *entry], stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        assert b"event=start" in process.stderr.readline()
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(hello("blog.example"))
            with backend.accept() as accepted:
                assert accepted.recv(3) == b"\x16\3\1"
                accepted.sendall(b"through the container")
            assert read_all(client) == b"through the container"
        uid = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^Uid:\t65534\t65534\t65534\t65534$", uid, re.MULTILINE)
    finally:
        process.send_signal(signal.Signals[steps["STOPSIGNAL"]])
        process.communicate(timeout=20)
        backend.close()
    assert process.returncode == 0
