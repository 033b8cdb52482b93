"""An archive of a release takes the place of an older one's, while that serves, without systemd."""

import pathlib
import signal
import socket
import subprocess

import sniproxy
from tests.deployment.conftest import GONE, NEWER
from tests.end_to_end.harness import Backend, read_all, read_exactly
from tests.hello import hello
from tests.ports import free_port

HELLO = hello("blog.example")


def install(archive: pathlib.Path, folder: pathlib.Path, prefix: pathlib.Path) -> set[str]:
    """Do as the manual says, to a place of our own; give the names of what is there then."""
    subprocess.run(["tar", "-x", "-f", archive, "-C", folder], check=True)
    unpacked = folder / archive.name.removesuffix(".tar.xz")
    done = subprocess.run(
        ["sh", unpacked / "chroot" / "install", "", prefix],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}


def start_of(process: subprocess.Popen[str]) -> str:
    """Wait until a program says that it has started; give its line."""
    assert process.stderr is not None
    said = ""
    while "event=start" not in (line := process.stderr.readline()):
        said += line
        assert line, said
    return line


def test_a_newer_archive_takes_over(
    archive: pathlib.Path, newer_archive: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prefix, hosts = tmp_path / "installed", tmp_path / "hosts"
    before = install(archive, tmp_path, prefix)
    (hosts / "blog.example").mkdir(parents=True)
    backend = Backend(hosts / "blog.example")
    port = free_port()
    command = [prefix / "bin" / "sniproxy-listen", f"127.0.0.1:{port}", "sniproxy"]
    process = subprocess.Popen(command, cwd=hosts, stderr=subprocess.PIPE, text=True)
    try:
        assert f" version={sniproxy.__version__} " in start_of(process)
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(HELLO)
            with backend.accept() as accepted:
                assert read_exactly(accepted, len(HELLO)) == HELLO
                after = install(newer_archive, tmp_path, prefix)
                process.send_signal(signal.SIGUSR2)
                line = start_of(process)
                assert f" version={NEWER} " in line
                assert " adopted=1 lost=0" in line
                accepted.sendall(b"still here")
            assert read_all(client) == b"still here"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        backend.close()
    assert process.returncode == 0
    # Whatever has a version in its name is of the newer one, and of the rest what it has no more
    # has gone.
    texts = {path for path in before | after if "/licenses/" in path}
    gone = {pathlib.PurePath(path).name for path in before - after - texts}
    assert gone == {pathlib.PurePath(path).name for path in GONE}
    assert after - texts < before
    assert texts & before
    assert texts & after
    assert not before & after & texts
