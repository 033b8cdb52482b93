"""What sniproxy-check says of each kind of entry."""

import json
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from sniproxy.tools.check import main


@pytest.fixture
def hosts(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Enter a hosts directory, and leave it at the end."""
    before = pathlib.Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def listen(directory: pathlib.Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    directory.mkdir()
    listening = socket.socket(socket.AF_UNIX, kind)
    listening.bind(str(directory / "tls-socket"))
    if kind == socket.SOCK_STREAM:
        listening.listen()
    return listening


def look(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]]]:
    status = main(["--json", "."])
    return status, {one["name"]: one for one in json.loads(capsys.readouterr().out)}


def test_all_is_well(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen(hosts / "a.example"), listen(hosts / "b.example"):
        (hosts / "b.example" / "send-proxy-v2").touch()
        (hosts / "etc").mkdir()
        status, found = look(capsys)
    assert status == 0
    assert set(found) == {"a.example", "b.example"}
    assert found["a.example"]["accepts"]
    assert found["a.example"]["backend_pid"] == os.getpid()
    assert (found["a.example"]["proxy_header"], found["b.example"]["proxy_header"]) == (
        "none",
        "v2",
    )


def test_each_problem_is_named(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    listen(hosts / "dead.example").close()
    datagram = listen(hosts / "datagram.example", socket.SOCK_DGRAM)
    listen(hosts / "Upper.example").close()
    (hosts / "empty.example").mkdir()
    (hosts / "file.example").touch()
    (hosts / "a_b").mkdir()
    (hosts / "dangling.example").symlink_to("nowhere")
    (hosts / "loop.example").symlink_to("loop.example")
    (hosts / "absolute.example").symlink_to(hosts / "dead.example")
    (hosts / "text.example").mkdir()
    (hosts / "text.example" / "tls-socket").touch()
    status, found = look(capsys)
    datagram.close()
    expected = {
        "dead.example": "nothing listens",
        "datagram.example": "wrong type",
        "Upper.example": "rename it to upper.example",
        "empty.example": "there is no tls-socket",
        "file.example": "not a directory",
        "a_b": "can never be asked for",
        "dangling.example": "dangling link",
        "loop.example": "in a circle",
        "absolute.example": "use dead.example",
        "text.example": "is no socket",
    }
    assert status == 1
    assert set(found) == set(expected)
    for name, words in expected.items():
        assert words in str(found[name]["problems"]), name


def test_table_and_usage(hosts: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hosts / "e\x1b[31m").mkdir()
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "1 hosts, 0 well, 1 not" in out
    with pytest.raises(SystemExit) as left:
        main(["/no/such/directory"])
    assert left.value.code == 2
