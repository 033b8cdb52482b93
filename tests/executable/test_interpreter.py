"""What starts in the executable is the interpreter that `python3` starts, but for what is meant.

Embedded, CPython leaves undone what its own main program does. So the same questions are put to
both, and each difference has its reason here. The executable runs nothing but sniproxy: a copy of
it is made in which the bytecode of `sniproxy.commands` is another, which asks them.
"""

import io
import json
import marshal
import os
import pathlib
import shlex
import subprocess
import sys
import types

import pytest

from tests.end_to_end.harness import TIMEOUT

MODULE = "sniproxy.commands"
NEAR = b"_end_at_interrupt"
"""A name that only that module has."""

MAIN = """
def main():
    import sys
    with open(sys.argv[1]) as file:
        text = file.read()
    exec(text, {})
    return 0
"""

QUESTIONS = r"""
import gc, os, resource, signal, sys, time, warnings

def status():
    with open("/proc/self/status") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}

def stream(one):
    if one is None:
        return None
    names = ("encoding", "errors", "newlines", "line_buffering", "write_through", "mode", "name")
    return [getattr(one, name, "") for name in names] + [type(one.buffer).__name__]

now = status()
answers = {
    # Of all 64 signals, as masks.
    "signals ignored": now["SigIgn"],
    "signals caught": now["SigCgt"],
    "signals blocked": now["SigBlk"],
    "signals pending": [now["SigPnd"], now["ShdPnd"]],
    "handler of SIGINT": signal.getsignal(signal.SIGINT),
    "other handlers": sorted(
        one.name for one in signal.Signals
        if signal.getsignal(one) not in (signal.SIG_DFL, signal.SIG_IGN)
        and one is not signal.SIGINT
    ),
    "wake-up descriptor": signal.set_wakeup_fd(-1),
    "timers": [signal.getitimer(one) for one in range(3)],
    "umask": now["Umask"],
    "threads": now["Threads"],
    "new privileges": [now["NoNewPrivs"], now["Seccomp"]],
    "capabilities": [value for key, value in sorted(now.items()) if key.startswith("Cap")],
    "limits": [
        resource.getrlimit(value)
        for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")
    ],
    "nice value": os.nice(0),
    "processors": sorted(os.sched_getaffinity(0)),
    "directory": os.getcwd(),
    # But for the sockets that the launcher puts where a standard one is closed.
    "descriptors": [
        [fd, os.readlink(f"/proc/self/fd/{fd}"), os.get_inheritable(fd)]
        for fd in range(9) if os.path.exists(f"/proc/self/fd/{fd}") and
        not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    ],
    "environment": sorted(os.environ.items()),
    "standard input": stream(sys.stdin),
    "standard output": stream(sys.stdout),
    "standard error": stream(sys.stderr),
    "originals": [sys.__stdin__ is sys.stdin, sys.__stdout__ is sys.stdout],
    "file names": [sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()],
    "default encoding": sys.getdefaultencoding(),
    "time zone": [time.tzname, time.timezone],
    "garbage": [gc.isenabled(), gc.get_debug(), gc.callbacks, gc.get_freeze_count()],
    "garbage threshold": gc.get_threshold(),
    "digits of an int": sys.get_int_max_str_digits(),
    "recursion limit": sys.getrecursionlimit(),
    "switch interval": sys.getswitchinterval(),
    "hash": [sys.hash_info.algorithm, sys.hash_info.hash_bits, sys.hash_info.cutoff],
    "thread info": list(sys.thread_info),
    "float style": sys.float_repr_style,
    "tracing": [sys.gettrace(), sys.getprofile(), sys.get_asyncgen_hooks()],
    "coroutine origins": sys.get_coroutine_origin_tracking_depth(),
    "hooks": [
        getattr(sys, name) is getattr(sys, f"__{name}__")
        for name in ("excepthook", "unraisablehook", "displayhook", "breakpointhook")
    ],
    "traceback limit": getattr(sys, "tracebacklimit", None),
    "warning options": [sys.warnoptions, sys._xoptions],
    "warning filters": [
        [one[0], one[1] and one[1].pattern if hasattr(one[1], "pattern") else one[1],
         one[2].__name__, getattr(one[3], "pattern", one[3]), one[4]]
        for one in warnings.filters
    ],
    "bytecode": [sys.dont_write_bytecode, sys.pycache_prefix],
    "small objects": sys.getallocatedblocks() > 0,
    "faulthandler": "faulthandler" in sys.modules,
    "search path": sys.path,
    "path hooks": len(sys.path_hooks),
    "importers": [getattr(one, "__name__", type(one).__name__) for one in sys.meta_path],
    "places": [sys.prefix, sys.exec_prefix, sys.executable, sys.platlibdir],
    "version": sys.version_info[:2],
}
for name in dir(sys.flags):
    if name[0] != "_" and name not in ("count", "index") and not name.startswith("n_"):
        answers[f"flag {name}"] = getattr(sys.flags, name)
try:
    import _locale
    answers["locale"] = _locale.setlocale(_locale.LC_ALL)
except ImportError:
    pass
import json
answers["a hash"] = hash("a")
with open(sys.argv[-1], "w") as file:
    file.write(json.dumps(answers, default=repr))
"""


NOT_COMPARED = {
    "a hash": "another at each start, which is looked at below",
    "search path": "python3 has its library there, we nothing",
}

WANTED: dict[str, tuple[object, str]] = {
    "garbage threshold": ([100_000, 10, 10], "the start makes 30,000 objects that stay"),
    "traceback limit": (0, "a traceback would open files named like modules"),
    "bytecode": ([True, None], "nothing is ever written"),
    "path hooks": (1, "nothing is imported from files"),
    "importers": (["OxidizedFinder"], "nothing is imported from files"),
    "places": (["/", "/", "/", "lib"], "Python's own place is not looked for"),
    "flag dont_write_bytecode": (1, "nothing is ever written"),
    "flag ignore_environment": (1, "others may set PYTHON… (a unit's PassEnvironment=)"),
    "flag isolated": (1, "the working directory is anybody's"),
    "flag no_site": (1, "site would run what lies in the working directory"),
    "flag no_user_site": (1, "as above"),
    "flag optimize": (2, "smaller: neither docstrings nor assertions"),
    "flag safe_path": (True, "the working directory is anybody's"),
    "flag utf8_mode": (1, "file names are bytes, whatever the locale"),
    "time zone": ([["UTC", "UTC"], 0], "no file of a time zone is read"),
    "locale": ("C", "no file of a locale is read"),
}
"""What the executable answers otherwise, and why."""


def reprogrammed(executable: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """Copy the executable with ``MAIN`` in the place of its commands."""
    image = bytearray(executable.read_bytes())
    near = start = image.index(NEAR)
    while True:
        # The byte that begins a code object, which may be anything else: try.
        start = image.rindex(0x80 | ord("c"), 0, start)
        stream = io.BytesIO(image[start : near + 0x10000])
        try:
            found = marshal.load(stream)
        except (EOFError, ValueError, TypeError):
            continue
        if isinstance(found, types.CodeType) and found.co_name == "<module>":
            break
    assert found.co_filename == MODULE
    code = marshal.dumps(compile(MAIN, MODULE, "exec"))
    assert len(code) <= stream.tell()
    image[start : start + len(code)] = code
    copy.write_bytes(image)
    copy.chmod(0o755)
    return copy


@pytest.fixture(scope="module")
def both(
    executable: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], list[str]]:
    """Give the commands that put the questions to python3 and to the executable."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("not applicable: the interpreter in the executable is 3.11, this is another")
    folder = tmp_path_factory.mktemp("questions")
    questions = folder / "questions.py"
    questions.write_text(QUESTIONS)
    python = os.path.realpath(sys.executable)
    copy = reprogrammed(executable, folder / "sniproxy")
    return [python, str(questions)], [str(copy), str(questions)]


def answers(
    command: list[str], redirections: str, stdout: int, out: pathlib.Path
) -> dict[str, object]:
    subprocess.run(
        ["/bin/sh", "-c", f"exec {shlex.join([*command, str(out)])} {redirections}"],
        env={"LC_ALL": "C.UTF-8", "TZ": "CET-1", "COLOUR": "grün"},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=TIMEOUT,
    )
    found: dict[str, object] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize(
    "redirections", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-", "</dev/tty >/dev/tty"]
)
def test_it_starts_as_python_does(
    both: tuple[list[str], list[str]], redirections: str, tmp_path: pathlib.Path
) -> None:
    ours, terminal = os.openpty()
    redirections = redirections.replace("/dev/tty", os.ttyname(terminal))
    out = tmp_path / "out"
    python, embedded = (answers(one, redirections, terminal, out) for one in both)
    os.close(ours)
    os.close(terminal)
    differing = {
        name: embedded.get(name)
        for name in python.keys() | embedded.keys()
        if name not in NOT_COMPARED and python.get(name) != embedded.get(name)
    }
    wanted = {name: value for name, (value, _) in WANTED.items()}
    assert differing == {name: wanted.get(name, "no such difference") for name in differing}
    # And none is listed that is no difference any more.
    assert set(wanted) == set(differing)


def test_a_hash_is_another_at_each_start(
    both: tuple[list[str], list[str]], tmp_path: pathlib.Path
) -> None:
    """So that no peer can choose what collides in a dictionary."""
    _, embedded = both
    found = {
        answers(embedded, "", subprocess.DEVNULL, tmp_path / "out")["a hash"] for _ in range(3)
    }
    assert len(found) == 3
