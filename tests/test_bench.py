"""The benchmark's own honesty: wrong bytes are noticed, figures are counted as they are said to be,
and docs/ shows what was measured."""

import json
import pathlib
import shutil
import socket
import struct
import subprocess
import sys

import pytest

from bench import measure, picture, publish, report
from bench.calls import Trace, of_connections
from bench.candidates import FLOOR, NGINX, OURS
from bench.works import CONNECTION, client_hello
from sniproxy.parser.client_hello import ClientHelloParser
from tests.end_to_end.harness import TIMEOUT, in_thread, read_exactly

COMMAND = 16
"""Bytes of a command, common.h."""

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is missing: install gcc")


def pattern(size: int) -> bytes:
    return b"".join(struct.pack("=Q", word) for word in range(-(-size // 8)))[:size]


@pytest.mark.parametrize("size", [337, 1800])
def test_hellos_have_the_size_and_the_name(size: int) -> None:
    hello = client_hello(size)
    assert len(hello) == size
    assert ClientHelloParser().feed(hello) == "bench.example"


@needs_cc
@pytest.mark.parametrize("damage", ["none", "changed", "missing", "too many"])
def test_the_load_checks_every_byte_it_gets(tmp_path: pathlib.Path, damage: str) -> None:
    measure.build()
    (tmp_path / "hello").write_bytes(client_hello(337))
    answer = pattern(100_000)
    if damage == "changed":
        answer = answer[:77_777] + bytes([answer[77_777] ^ 1]) + answer[77_778:]
    elif damage == "missing":
        answer = answer[:-1]
    elif damage == "too many":
        answer += pattern(100_008)[-8:]

    def serve() -> None:
        stream, _ = listening.accept()
        with stream:
            read_exactly(stream, 337 + COMMAND)
            stream.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = in_thread(serve)
        port = str(listening.getsockname()[1])
        command = [measure.BUILD / "load", port, tmp_path / "hello", "r", "1", "1", "100000"]
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
        thread.join()
    assert (done.returncode == 0) == (damage == "none"), done.stderr


@needs_cc
@pytest.mark.parametrize("damaged", [False, True])
def test_the_backend_checks_every_byte_it_gets(tmp_path: pathlib.Path, damaged: bool) -> None:
    measure.build()
    path = tmp_path / "socket"
    data = bytearray(pattern(100_000))
    data[55_555] ^= damaged
    with subprocess.Popen(
        [measure.BUILD / "backend", path, "0"], stderr=subprocess.PIPE
    ) as backend:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                while client.connect_ex(str(path)):
                    assert backend.poll() is None
                client.sendall(client_hello(337) + struct.pack("=QQ", ord("u"), len(data)) + data)
                client.settimeout(TIMEOUT)
                if damaged:
                    assert backend.wait(TIMEOUT) == 1
                else:
                    assert client.recv(2) == b"k"
        finally:
            backend.kill()


@needs_cc
def test_a_comparison(tmp_path: pathlib.Path) -> None:
    """A small run with the floor and the source gives their figures, and tables of them."""
    command = [sys.executable, "-m", "bench.compare", "--quick", "--rounds", "1"]
    command += ["--candidates", f"^({FLOOR}|{OURS}, source)$", "--only", f"^{CONNECTION.name}$"]
    done = subprocess.run(
        [*command, "--output", tmp_path],
        cwd=measure.HERE.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    for name in (FLOOR, f"{OURS}, source"):
        (figures,) = results[CONNECTION.name][name]
        assert figures["cpu"] > 0
        assert figures["load"] > 0
    assert f"| {FLOOR} |" in (tmp_path / "results.md").read_text()
    assert f"| {FLOOR} |" in done.stdout


def test_system_calls_are_counted_between_accepts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace"
    one = "7 accept4(3) = 4\n7 recvfrom(4, <unfinished ...>\n7 <... recvfrom resumed>) = 1\n"
    path.write_text("7 socket() = 3\n" + 3 * one + "7 accept4(3) = 4\n7 clo")
    trace = Trace(path)
    calls = trace.calls()
    assert of_connections(calls, 2) == {"accept4": 2, "recvfrom": 2}
    with pytest.raises(ValueError, match="expected 5 connections, found 4"):
        of_connections(calls, 3)
    with path.open("a") as file:
        file.write("se(4) = 0\n")
    assert trace.calls() == ["close"]


def test_system_calls_have_one_name_on_each_architecture(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace"
    path.write_text('7 epoll_pwait(4, [], 64, 0, NULL, 8) = 0\n7 faccessat(-100, "a", F_OK) = 0\n')
    assert Trace(path).calls() == ["epoll_wait", "access"]
    path.write_text('7 epoll_wait(4, [], 64, 0) = 0\n7 access("a", F_OK) = 0\n')
    assert Trace(path).calls() == ["epoll_wait", "access"]


def made_up(ours: float) -> report.Report:
    rounds = [{"cpu": 1.0}, {"cpu": ours}, {"cpu": 1000.0}]
    return {
        "machine": {},
        "results": {"connection": {OURS: rounds, NGINX: [{"cpu": 50.0}], FLOOR: [{"cpu": 40.0}]}},
    }


@pytest.mark.parametrize(("ours", "reached"), [(55.0, [True]), (57.0, [False])])
def test_targets_compare_medians(ours: float, reached: list[bool]) -> None:
    """The median of ours, in proportion to nginx; what was not measured is no target reached."""
    judged = report.verdicts(made_up(ours))
    assert [one.reached for one in judged] == reached
    assert judged[0].value == pytest.approx(ours / 50)
    assert ("| **1.14** of 1.12 |" in report.markdown(made_up(ours))) != all(reached)


def test_docs_show_what_was_measured() -> None:
    measured = publish.published()
    assert len({report.kind(one) for one in measured}) == len(measured)
    text = publish.TEXT.read_text()
    assert text == publish.with_tables(text, report.side_by_side(measured))
    assert publish.PICTURE.read_text() == picture.draw(measured[0])


def test_each_kind_of_machine_has_its_figures(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIGURES", "PICTURE", "TEXT"):
        monkeypatch.setattr(publish, name, tmp_path / name)
    publish.FIGURES.write_text("[]")
    publish.TEXT.write_text(publish.BEGIN + publish.END)
    for cpu, value in (("2 × AMD EPYC", 60.0), ("2 × Intel Xeon", 55.0), ("4 × AMD EPYC", 57.0)):
        made = made_up(value)
        made["machine"]["cpu"] = cpu
        publish.publish(made)
    text = publish.TEXT.read_text()
    # nginx has 50: at most 1.12 of it, or 1.22 where system calls are cheap.
    assert "| AMD | Intel |" in text
    assert "of nginx's | **1.14** of 1.12 | 1.10 of 1.22 |" in text
    assert "2 × AMD EPYC" not in text
