"""What the tools do where nobody, or something full, takes what they print."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from sniproxy.tools.output import complain, escaped, shown, tell

COMMANDS = ["sniproxy", "sniproxy-hostname", "sniproxy-check", "sniproxy-listen", "sniproxy-status"]


def run(
    script: str, command: str, *arguments: str, unbuffered: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command within a line of shell that redirects it; ``"$@"`` is the command."""
    program = (
        f"import sys; sys.argv[0] = {command!r}; from sniproxy.commands import main; "
        "sys.exit(main())"
    )
    words = ["/bin/sh", "-c", script, "sh", sys.executable, "-c", program, *arguments]
    # Unbuffered output would leave nothing to be flushed at the exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if unbuffered:
        environment["PYTHONUNBUFFERED"] = "1"
    return subprocess.run(
        words,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=environment,
    )


@pytest.mark.parametrize(
    ("command", "arguments", "status"),
    [
        ("sniproxy", ["--version"], 1),
        ("sniproxy", ["--help"], 1),
        ("sniproxy-hostname", ["--version"], 1),
        ("sniproxy-hostname", ["--help"], 1),
        ("sniproxy-hostname", ["a.example"], 1),
        ("sniproxy-listen", ["--version"], 1),
        ("sniproxy-listen", ["--help"], 1),
        ("sniproxy-status", ["--version"], 1),
        ("sniproxy-status", ["--help"], 1),
        ("sniproxy-check", ["--version"], 2),
        ("sniproxy-check", ["--help"], 2),
        ("sniproxy-check", ["{}"], 2),
        ("sniproxy-check", ["--json", "{}"], 2),
    ],
)
@pytest.mark.parametrize("unbuffered", [False, True])
def test_full_and_closed_output(
    tmp_path: pathlib.Path, command: str, arguments: list[str], status: int, unbuffered: bool
) -> None:
    words = [argument.format(tmp_path) for argument in arguments]
    full = run('"$@" >/dev/full', command, *words, unbuffered=unbuffered)
    assert full.returncode == status
    assert full.stderr == "can't write to standard output: No space left on device\n"
    # A pipe whose reader has gone before anything is written.
    pipe = f"pipe='{tmp_path}/pipe'; mkfifo $pipe; exec 3<>$pipe 4>$pipe 3<&-; "
    unread = run(pipe + '"$@" >&4 4>&-', command, *words, unbuffered=unbuffered)
    assert (unread.returncode, unread.stderr) == (status, "")
    closed = run('"$@" >&-', command, *words, unbuffered=unbuffered)
    assert closed.returncode == status
    assert "Traceback" not in closed.stderr
    nothing = run('"$@" >&- 2>&-', command, *words, unbuffered=unbuffered)
    assert nothing.returncode == status


def test_a_reader_that_has_seen_enough() -> None:
    done = run('"$@" | head -n 1; exit 0', "sniproxy-hostname", *["a.example"] * 20_000)
    assert (done.stdout, done.stderr) == ("a.example\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_usage_errors_are_for_standard_error(command: str) -> None:
    done = run('"$@"', command, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--no-such-option" in done.stderr
    deaf = run('"$@" 2>&-', command, "--no-such-option")
    assert (deaf.returncode, deaf.stdout) == (2, "")
    # What a pattern of the shell's finds in somebody else's directory reaches no terminal as it is.
    assert "\x1b" not in run('"$@"', command, "--\x1b[31m").stderr


def test_complaints_that_nobody_gets() -> None:
    """The exit status is what it would be."""
    for redirection in ("2>/dev/full", "2>&-"):
        assert run(f'"$@" {redirection}', "sniproxy", "--no-such-option").returncode == 2
        done = run(f'"$@" {redirection}', "sniproxy-hostname", "a,b", "a.b", "c,d")
        assert (done.returncode, done.stdout) == (1, "a.b\n")


def test_names_are_shown_without_harm() -> None:
    assert shown("a.example") == "a.example"
    assert shown("bücher") == "bücher"
    assert shown("a\\b") == "a\\\\b"
    assert shown("a\x1b[31m\n") == "a\\x1b[31m\\x0a"
    assert shown(os.fsdecode(b"a\xff")) == "a\\xff"
    assert escaped("a\\b\x1b" + os.fsdecode(b"\xff")) == "a\\b\\x1b\\xff"
    # Writing direction is no matter of a terminal's choice either.
    assert shown("a\u202eb") == "a\\xe2\\x80\\xaeb"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_stream_has_no_character_for_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """As in names: by the bytes that they have in a file system."""
    text = "e é 字 𝔢 \udcff \ud800\n"
    expected = {
        "ascii": "e \\xc3\\xa9 \\xe5\\xad\\x97 \\xf0\\x9d\\x94\\xa2 \\xff \\xed\\xa0\\x80\n",
        "latin-1": "e é \\xe5\\xad\\x97 \\xf0\\x9d\\x94\\xa2 \\xff \\xed\\xa0\\x80\n",
        "utf-8": "e é 字 𝔢 \\xff \\xed\\xa0\\x80\n",
    }[encoding]
    for name, say in (("stdout", tell), ("stderr", lambda text: complain(text.rstrip()))):
        written = io.BytesIO()
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding))
        say(text)
        assert written.getvalue() == expected.encode(encoding)
        monkeypatch.undo()
