"""Which files the listening sockets of a running sniproxy lie at."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from sniproxy.tools.ourselves import file_identity, own_sockets
from tests.end_to_end.harness import Proxy, commands, wait_for


@pytest.fixture
def hosts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Enter a hosts directory, and leave it at the end."""
    (tmp_path / "hosts").mkdir()
    monkeypatch.chdir(tmp_path / "hosts")
    return tmp_path / "hosts"


def identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return file_identity(status.st_dev, status.st_ino)


def test_those_of_a_sniproxy_in_this_directory(hosts: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as another:
        listening.bind("../by a relative\nname")
        listening.listen()
        another.bind("another")
        another.listen()
        assert own_sockets() == set()
        proxy = Proxy(commands(None), hosts, listening, {"SNIPROXY_WORKERS": "1"})
        wait_for(proxy, "event=start")
        assert own_sockets() == {identity("../by a relative\nname")}
        # One that serves other hosts is a backend like any other.
        os.chdir("..")
        assert own_sockets() == set()
        proxy.process.kill()
        proxy.process.wait()


def test_what_is_no_sniproxy_is_none(hosts: pathlib.Path) -> None:
    """A backend may have been started in the hosts directory."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("tls-socket")
        listening.listen()
        sleeper = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listening.fileno()],
        )
        assert sleeper.stdout is not None
        assert sleeper.stdin is not None
        sleeper.stdout.readline()
        assert own_sockets() == set()
        sleeper.communicate(b"\n")
