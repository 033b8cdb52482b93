"""Which name runs what, and what a word on the command line leads to."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from sniproxy import __version__, commands
from sniproxy.version import version_line

NAMES = ["sniproxy", "sniproxy-hostname", "sniproxy-check", "sniproxy-listen", "sniproxy-status"]


def call(
    name: str, *arguments: str, before: str = "", **options: object
) -> subprocess.CompletedProcess[str]:
    """Run ``main`` under a name, as the executable and its links do."""
    program = f"import sys; sys.argv[0] = {name!r}; {before}\n"
    program += "from sniproxy.commands import main; sys.exit(main())"
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **options,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["", "./", "/usr/bin/"])
def test_the_last_component_decides(name: str, folder: str) -> None:
    done = call(folder + name, "--version")
    assert (done.returncode, done.stdout) == (0, f"{name} {__version__} (plain)\n")


def test_any_other_name_is_the_proxy() -> None:
    for name in ("proxy", "", "sniproxy-0.1", "-"):
        assert call(name, "--version").stdout.startswith("sniproxy ")


def test_each_name_has_its_script() -> None:
    """What pyproject.toml promises exists, and each runs what it is called."""
    text = (pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text()
    for name in NAMES:
        function = name.replace("-", "_")
        assert f'{name} = "sniproxy.commands:{function}"' in text
        program = f"import sys; from sniproxy.commands import {function} as f; sys.exit(f())"
        done = subprocess.run(
            [sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout == version_line(name) + "\n"


def test_the_module_is_the_proxy() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sniproxy", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == version_line("sniproxy") + "\n"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--port=1"], "'--port=1'"),
        (["-v"], "'-v'"),
        (["--help", "me"], "'me'"),
        (["--version", "--help"], "'--help'"),
        ([""], "''"),
        (["\x1b[31m"], r"'\x1b[31m'"),
        (["\udcff"], r"'\udcff'"),
    ],
)
def test_usage_errors(arguments: list[str], wrong: str) -> None:
    done = call("sniproxy", *arguments)
    assert (done.returncode, done.stdout) == (commands.USAGE_ERROR, "")
    assert done.stderr == (
        f"sniproxy: unknown argument {wrong}: there are no options, try sniproxy --help\n"
    )


def test_help() -> None:
    for option in ("--help", "-h"):
        done = call("sniproxy", option)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: sniproxy ")


def test_no_option_needs_a_socket_or_loads_the_proxy() -> None:
    shown = "import atexit; atexit.register(lambda: print('asyncio' in sys.modules))"
    assert call("sniproxy", "--version", before=shown).stdout.endswith("False\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_a_hosts_directory(tmp_path: pathlib.Path) -> None:
    """The working directory can't be entered: one line, and an exit status of its own."""
    before = (
        "import os, socket, sniproxy.process.service; os.chmod('.', 0); os.seteuid(65534); "
        "listening = socket.create_server(('127.0.0.1', 0)); os.dup2(listening.fileno(), 0)"
    )
    done = call("sniproxy", before=before, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (commands.FAILURE, "")
    where = f"the hosts directory is the working directory, '{tmp_path}', and uid 65534"
    reason = f"{where} can't use it: Permission denied"
    assert done.stderr == f"sniproxy: can't start: {reason}\n"


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_is_no_traceback(name: str) -> None:
    """From the first line on, Ctrl-C ends a command as it does any other."""
    before = (
        "import signal; set = signal.signal\n"
        "def interrupted(number, action):\n"
        "    set(number, action)\n"
        "    if action is signal.SIG_DFL: os.kill(os.getpid(), signal.SIGINT)\n"
        "import os; signal.signal = interrupted"
    )
    done = call(name, before=before)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
