"""A terminal with a program in it: what it shows, what is typed, and how it is left behind."""

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence

import pyte

from tests.end_to_end.harness import TIMEOUT

ROOT = pathlib.Path(__file__).parent.parent

OURS = re.compile(rb"\x1b\[(?:\?\d+[hl]|2J|[HJ]|[01]m)|\r+\n")
"""Every control sequence that we write."""


class Terminal:
    """A pseudo terminal of ``columns`` and ``lines`` and the process that it controls."""

    def __init__(self, command: Sequence[str], columns: int = 100, lines: int = 24) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        # Open here as well, so that what it is left like can be seen.
        self._ours, self.tty = pty.openpty()
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self.tty)
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), "PS1": "$ "}
        self.process = subprocess.Popen(
            command,
            stdin=self.tty,
            stdout=self.tty,
            stderr=self.tty,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def resize(self, columns: int, lines: int) -> None:
        self._screen.resize(lines, columns)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, condition: Callable[[], object]) -> None:
        """Take what is written until a condition holds."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, self.text
            self._take(0.05)

    def shows(self, *words: str) -> None:
        """Wait for words."""
        self.until(lambda: all(word in self.text for word in words))

    def _take(self, seconds: float) -> None:
        if select.select([self._ours], [], [], seconds)[0]:
            piece = os.read(self._ours, 1 << 16)
            self.written += piece
            self._stream.feed(piece)

    def ends(self) -> int:
        """Wait for the end of the process; give its status."""
        self.until(lambda: self.process.poll() is not None)
        while select.select([self._ours], [], [], 0)[0]:
            self._take(0)
        return self.process.wait()

    @property
    def is_drawn_on(self) -> bool:
        return self.written.rfind(b"\x1b[?1049h") > self.written.rfind(b"\x1b[?1049l")

    @property
    def is_as_before(self) -> bool:
        """Say whether nothing of what was changed about the terminal has stayed."""
        switched = re.findall(rb"\x1b\[\?(\d+)([hl])", self.written)
        usual = {b"1049": b"l", b"25": b"h", b"7": b"h"}
        return dict(switched) in (usual, {}) and termios.tcgetattr(self.tty) == self.modes

    def close(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)
        os.close(self.tty)


@contextlib.contextmanager
def terminal(*command: str, columns: int = 100, lines: int = 24) -> Iterator[Terminal]:
    one = Terminal(command, columns, lines)
    try:
        yield one
    finally:
        one.close()


def status(*arguments: str, before: str = "") -> list[str]:
    """Give the command line of sniproxy-status, which does something else before."""
    program = f"import sys; sys.argv[0] = 'sniproxy-status'\n{before}\n"
    program += "from sniproxy.commands import main; sys.exit(main())"
    return [sys.executable, "-c", program, *arguments]
