"""The screen: a terminal that is drawn on, and what comes from it: keys and signals.

Signals are numbers in a pipe: they are acted on where one waits, never in the middle of something,
so that a terminal is given back as it was found whatever comes. What is written are the control
sequences of ECMA-48 and xterm that every terminal has or passes over; no colours.
"""

import contextlib
import os
import re
import select
import signal
import socket
import sys
import termios
from collections.abc import Iterator, Sequence

from sniproxy.tools.output import tell

REDRAW = "\f"
"""A key (Ctrl-L) that also stands for a new size and for the return from a stop."""

NEXT, PREVIOUS = " ", "b"
"""Keys for pages, as in pagers; those of the keyboard are translated."""

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_OTHERS = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
"""The alternate screen, no cursor, no automatic line break, nothing on it."""

_LEAVE = "\x1b[0m\x1b[H\x1b[J\x1b[?7h\x1b[?25h\x1b[?1049l"
"""It is cleared for terminals that have no other screen."""

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[^\[O])")
"""What a key that is no character sends."""

_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")
_TRANSLATED = {"\x1b[6~": NEXT, "\x1b[5~": PREVIOUS}

_INPUT = 0
_LONGEST_INPUT = 4096


class Ended(Exception):  # noqa: N818 - no error
    """It has been ended: by a signal, whose ``number`` it has, else by the user, or, not ``well``,
    by the terminal."""

    def __init__(self, number: int = 0, *, well: bool = True) -> None:
        super().__init__(number)
        self.number = number
        self.well = well


def is_terminal() -> bool:
    """Say whether standard output is a terminal that can be drawn on."""
    return size() is not None and os.environ.get("TERM", "dumb") != "dumb"


def size() -> os.terminal_size | None:
    """Give the size of the terminal that is standard output, None where it is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # closed before we were started, or no terminal
        return None


class Screen:
    """The terminal of standard output, with the keys of standard input where that is one."""

    def __init__(self) -> None:
        self._unread = ""
        try:
            self._modes = termios.tcgetattr(_INPUT)
        except termios.error:
            self._modes = []

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Have the terminal for as long as this lasts, and give it back as it was."""
        self._wake, wake_up = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {
            number: signal.signal(number, self._note)
            for number in (*_ENDS, *_OTHERS)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        try:
            self._enter()
            yield
        finally:
            self._leave()
            signal.set_wakeup_fd(-1)
            for number, action in before.items():
                signal.signal(number, action)
            os.close(self._wake)
            os.close(wake_up)

    def wait(self, waiting: socket.socket | None, events: int, seconds: float) -> tuple[bool, str]:
        """Wait for a socket, a key or a signal; say whether the socket is ready, and which keys
        there were. Raises Ended."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if self._modes:
            poller.register(_INPUT, select.POLLIN)
        if waiting is not None:
            poller.register(waiting, events)
        ready = {number for number, _ in poller.poll(seconds * 1000)}
        keys = ""
        if self._wake in ready:
            keys += self._signals()
        if _INPUT in ready:
            keys += self._keys()
        return waiting is not None and waiting.fileno() in ready, keys

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines; those of a terminal that does not know are the usual ones."""
        found = size()
        return found if found and all(found) else os.terminal_size((80, 24))

    def draw(self, lines: Sequence[str], bold: int) -> None:
        """Show these lines, which fit; the one with the index ``bold`` stands out. Raises Ended.

        Every place is written anew, in one piece and without clearing anything before.
        """
        columns, rows = self.size
        padded = [line[:columns].ljust(columns) for line in [*lines, *[""] * rows][:rows]]
        if bold < rows:
            padded[bold] = f"{_BOLD}{padded[bold]}{_PLAIN}"
        if not tell("\x1b[H" + "\r\n".join(padded)):
            raise Ended(well=False)

    def _enter(self) -> None:
        if self._modes:
            modes = list(self._modes)
            modes[3] &= ~(termios.ICANON | termios.ECHO)
            with contextlib.suppress(termios.error):
                termios.tcsetattr(_INPUT, termios.TCSADRAIN, modes)
        tell(_ENTER)

    def _leave(self) -> None:
        tell(_LEAVE)
        if self._modes:
            with contextlib.suppress(termios.error):  # it may be gone
                termios.tcsetattr(_INPUT, termios.TCSADRAIN, self._modes)

    @staticmethod
    def _note(number: int, _frame: object) -> None:
        """Called by Python beside the pipe, also where a write waits for a held terminal (Ctrl-S)
        and would not come to an end."""
        if number in _ENDS:
            with contextlib.suppress(termios.error):
                for action in (termios.TCOOFF, termios.TCOON):  # the latter undoes the former only
                    termios.tcflow(sys.stdout.fileno(), action)

    def _signals(self) -> str:
        for number in os.read(self._wake, _LONGEST_INPUT):
            if number in _ENDS:
                raise Ended(number)
            if number == signal.SIGTSTP:
                self._leave()
                signal.signal(signal.SIGTSTP, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTSTP)  # until somebody lets us go on
                signal.signal(signal.SIGTSTP, self._note)
            if number != signal.SIGWINCH:
                self._enter()
        return REDRAW

    def _keys(self) -> str:
        try:
            text = os.read(_INPUT, _LONGEST_INPUT)
        except OSError:
            text = b""
        if not text:
            raise Ended(well=False)  # the terminal has gone
        pressed = self._unread + text.decode("ascii", "replace")
        rest = _UNFINISHED.search(pressed)
        self._unread = rest[0] if rest else ""
        pressed = pressed.removesuffix(self._unread)
        return _SEQUENCE.sub(lambda one: _TRANSLATED.get(one[0], ""), pressed)
