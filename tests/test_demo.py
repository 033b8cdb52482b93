"""The demonstration: it works, and it notices when an answer is wrong."""

import pathlib
import subprocess
import sys

import pytest

from demo.demonstration import Row, show

ROOT = pathlib.Path(__file__).parent.parent


def test_each_row_is_well() -> None:
    if not (pathlib.Path(sys.executable).parent / "sniproxy").exists():
        pytest.skip("sniproxy is missing beside this interpreter: make test installs it")
    command = [sys.executable, "demo/demonstration.py", "--once", "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == 5
    assert "told by PROXY v2 of client 127.0.0.1:" in done.stdout


def test_a_wrong_answer_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert not show(Row("a.example", "plain", "I am a", "I am b"))
    assert capsys.readouterr().out.startswith("WRONG a.example")
