"""What the tools say, word for word: each file of ``tests/transcripts`` is a session at a shell.

It begins with what it shows. A line that begins with ``$`` is a command, ``>`` continues it; they
run in /FOLDER/hosts, which is empty at first. What follows is all that one writes, in the order in
which it does, and ``[N]`` is its exit status where that is not 0. ``--update-tables`` writes the
files anew: read what has changed in them.
"""

import contextlib
import importlib
import os
import pathlib
import pwd
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import TIMEOUT
from tests.status_stub import HOSTILE, connection, document, host, ok, paged, stub

FOLDER = pathlib.Path(__file__).parent / "transcripts"

AS_ROOT = "Only root can do this."
"""Stands in what begins a transcript."""

TOOLS = {
    "sniproxy-check": "check",
    "sniproxy-hostname": "hostname",
    "sniproxy-listen": "listen",
    "sniproxy-status": "look",
}
"""Each tool and its module."""

UMASK = 0o022

MEASURED = {"COVERAGE_PROCESS_START"}
"""Variables by which ``--covered`` has the tools write down which lines they run."""

_COMMAND = re.compile(r"^\$ (.*(?:\n> .*)*\n)", re.MULTILINE)
_OF_A_SHELL = re.compile(r"[|&;<>$~*\n`]")
"""What only a shell understands."""


def cases(tool: str = "*") -> list[str]:
    """Name the transcripts of a tool, or of all."""
    return sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob(f"{tool}/*.txt"))


def alike(text: str, folder: pathlib.Path) -> str:
    """Write alike what differs from run to run, or by who runs it: this and nothing else."""
    user = re.escape(pwd.getpwuid(os.geteuid()).pw_name)
    for pattern, word in (
        (re.escape(str(folder)), "/FOLDER"),
        (r'(?<="backend_pid": )\d+', "PID"),
        (rf'(?<="backend_user": "){user}(?=")|(?<=accepts as ){user}(?=,)', "root"),
        (rf"(?<=uid ){os.geteuid()}\b", "0"),
    ):
        text = re.sub(pattern, word, text)
    return text


# Commands that only transcripts have: what lasts until the end of one.


def backend(
    kept: contextlib.ExitStack, hosts: pathlib.Path, directory: str, how: str = "well"
) -> None:
    """``backend DIRECTORY``: have one that listens on tls-socket there."""
    (hosts / directory).mkdir(exist_ok=True)
    kind = socket.SOCK_DGRAM if how == "datagram" else socket.SOCK_STREAM
    made = kept.enter_context(socket.socket(socket.AF_UNIX, kind))
    with contextlib.chdir(hosts / directory):
        made.bind("tls-socket")
        if how != "datagram":
            made.listen(0 if how == "busy" else 100)
        if how == "busy":
            kept.enter_context(socket.socket(socket.AF_UNIX)).connect("tls-socket")


_PAGES = [[connection(f"192.0.2.{page}:{n}") for n in range(2 + page)] for page in range(3)]
_HOSTS = [host("idle.example"), host("busy.example", open=5, bytes_down=3 << 20)]
_USUAL = paged(_PAGES, hosts=_HOSTS)
_ANSWERS: dict[str, Callable[[str], bytes]] = {
    "usual": _USUAL,
    "none": paged([[]]),
    "hostile": paged(
        [[connection(name, name, state=name) for name in HOSTILE]], hosts=list(map(host, HOSTILE))
    ),
    "busy": lambda _: b"HTTP/1.0 503 Busy\r\n\r\n",
    "breaking-off": lambda asked: b"" if "after=2" in asked else _USUAL(asked),
    "more": lambda _: ok(document(more={"deep": [1.5, None, True, "\u202e\x7f"]})),
}


def status(kept: contextlib.ExitStack, hosts: pathlib.Path, name: str) -> None:
    """``status NAME``: have a status socket, which gives those answers."""
    kept.enter_context(stub(hosts / "status", _ANSWERS[name]))


_OURS = {"backend": backend, "status": status}


def _fork(words: list[str], hosts: pathlib.Path, environment: dict[str, str]) -> tuple[bytes, int]:
    """Be a tool in a process that is forked for it: that takes a tenth of what a new one does."""
    with tempfile.TemporaryFile() as output:
        with warnings.catch_warnings():  # of threads, which no tool has to do with
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child:
            result = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            return output.read(), result
        result = -1
        try:
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(hosts)
            os.environ.clear()
            os.environ.update(environment)
            os.umask(UMASK)
            main = importlib.import_module(f"sniproxy.tools.{TOOLS[words[0]]}").main
            result = main(words[1:])
        except SystemExit as end:
            result = end.code if isinstance(end.code, int) else -1
        finally:  # it must not go on as the test run
            os._exit(result)


def _said(command: str, hosts: pathlib.Path, tools: pathlib.Path, forked: bool) -> str:
    """Run a command; give what it has written, and its status."""
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", "COLUMNS": "80"}
    environment |= {name: os.environ[name] for name in MEASURED if name in os.environ}
    if forked and command.startswith("sniproxy-") and not _OF_A_SHELL.search(command):
        output, result = _fork(shlex.split(command), hosts, environment)
    else:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=hosts,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=UMASK,
            timeout=TIMEOUT,
            check=False,
        )
        output, result = done.stdout, done.returncode
    text = output.decode(errors="backslashreplace")
    assert text == "" or text.endswith("\n"), text
    return text + (f"[{result}]\n" if result else "")


def played(expected: str, folder: pathlib.Path, tools: pathlib.Path, *, forked: bool) -> str:
    """Run all commands of a transcript again, with the tools of a folder or, where that is the
    same, with those of this process; give what it is now."""
    hosts = folder / "hosts"
    hosts.mkdir()
    if AS_ROOT in expected and os.geteuid():
        pytest.skip("only root can be several users")
    text = expected[: expected.index("\n$ ") + 1]
    with contextlib.ExitStack() as kept:
        for written in _COMMAND.findall(expected):
            command = written.rstrip("\n").replace("\n> ", "\n")
            name, *arguments = command.split(" ")
            if name in _OURS:
                _OURS[name](kept, hosts, *arguments)
                text += f"$ {written}"
            else:
                text += f"$ {written}{_said(command, hosts, tools, forked)}"
    return alike(text, folder)
