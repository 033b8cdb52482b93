"""The source distribution and the wheel: checked, installed in clean environments, and tried."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tarfile

import pytest

import sniproxy
from tests.deployment.machine import REPOSITORY
from tests.end_to_end.harness import Backend, directory_name, read_all
from tests.hello import hello
from tests.ports import free_port
from tests.test_links import CODE, LINK

NAME = f"sniproxy-{sniproxy.__version__}"
TOOLS = ("sniproxy", "sniproxy-check", "sniproxy-hostname", "sniproxy-listen", "sniproxy-status")

pytestmark = pytest.mark.timeout(600)  # pip is slow where much else is done

CLEAN = {
    name: text
    for name, text in os.environ.items()
    if not name.startswith(("PYTHON", "SNIPROXY", "SOURCE_DATE"))
}


def run(*command: str | pathlib.Path, **environment: str) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=CLEAN | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(**environment: str) -> list[pathlib.Path]:
    run("make", "-C", REPOSITORY, "wheel", f"PYTHON={sys.executable}", **environment)
    names = (f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl")
    return [REPOSITORY / "dist" / name for name in names]


@pytest.fixture(scope="module")
def made() -> list[pathlib.Path]:
    return make()


def test_equal_sources_give_equal_bytes(made: list[pathlib.Path]) -> None:
    before = [file.read_bytes() for file in made]
    for file in made:
        file.unlink()
    again = make(SNIPROXY_HASHED="1", TZ="Asia/Kathmandu", LC_ALL="C")
    assert [file.read_bytes() for file in again] == before


def test_twine_finds_nothing_wrong(made: list[pathlib.Path]) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *made)


def test_the_source_distribution_has_what_its_documents_lead_to(
    made: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    with tarfile.open(made[0]) as distribution:
        distribution.extractall(tmp_path, filter="data")
    root = tmp_path / NAME
    assert (root / "CHANGELOG.md").read_bytes() == (REPOSITORY / "CHANGELOG.md").read_bytes()
    pages = list(root.rglob("*.md"))
    assert len(pages) > 40
    for page in pages:
        for target in LINK.findall(CODE.sub("", page.read_text())):
            name = target.partition("#")[0]
            assert "://" in name or (page.parent / name).exists(), (page.name, target)


@pytest.mark.parametrize(("kind", "hashed"), [(0, True), (1, False)])
def test_it_is_installed_and_serves(
    made: list[pathlib.Path], tmp_path: pathlib.Path, kind: int, hashed: bool
) -> None:
    """The source distribution has the choice of the flavour; what is in the wheel was in it."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    commands = tmp_path / "venv" / "bin"
    flavour = {"SNIPROXY_HASHED": "1"} if hashed else {}
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(commands / "python", *install, made[kind], **flavour)
    for tool in TOOLS:
        word = "hashed" if hashed else "plain"
        assert run(commands / tool, "--version") == f"{tool} {sniproxy.__version__} ({word})\n"
    pages = {path.name for path in (tmp_path / "venv/share/man").rglob("*.?")}
    assert pages == {path.name for path in (REPOSITORY / "docs" / "man").iterdir()}
    name = run(commands / "sniproxy-hostname", "bücher.example").strip()
    assert name == directory_name(hashed, "xn--bcher-kva.example")

    hosts = tmp_path / "hosts"
    (hosts / name).mkdir(parents=True)
    backend = Backend(hosts / name)
    port = free_port()
    listen = [commands / "sniproxy-listen", f"127.0.0.1:{port}", "sniproxy"]
    process = subprocess.Popen(listen, cwd=hosts, stderr=subprocess.PIPE, env=CLEAN)
    try:
        assert process.stderr is not None
        assert b"event=start" in process.stderr.readline()
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(hello("xn--bcher-kva.example"))
            with backend.accept() as accepted:
                assert accepted.recv(3) == b"\x16\3\1"
                accepted.sendall(b"by the wheel")
            assert read_all(client) == b"by the wheel"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        backend.close()
    assert process.returncode == 0
