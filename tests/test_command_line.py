"""The options that all tools have, and what is said of others."""

import os
import sys

import pytest

from sniproxy.tools.command_line import CommandLine
from sniproxy.version import version_line

FAILURE = 7


def ended(*arguments: str) -> int:
    """Read a command line that ends the tool; give its exit status."""
    parser = CommandLine("tool", failure=FAILURE, description="Do something.")
    parser.add_argument("word", nargs="?")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_answers(capfd: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "-h"):
        assert ended(option, "--more") == 0
        shown, complaint = capfd.readouterr()
        assert shown.startswith("usage: tool [--help] [--version] [word]\n\nDo something.\n")
        assert complaint == ""
    assert ended("--version") == 0
    assert capfd.readouterr() == (version_line("tool") + "\n", "")


def test_an_answer_that_nobody_can_read(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert ended("--help") == FAILURE
    reason = os.strerror(28)
    assert capfd.readouterr().err == f"can't write to standard output: {reason}\n"


def test_an_error_is_on_standard_error_and_can_not_command_a_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert ended("--\x1b[31m") == 2
    usage = "usage: tool [--help] [--version] [word]\n"
    reason = r"tool: error: unrecognized arguments: --\x1b[31m"
    assert capfd.readouterr() == ("", f"{usage}{reason}\n")
