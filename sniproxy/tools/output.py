"""What the tools print: to standard output for programs and people, to standard error for people.

Either may be closed, full, or a pipe that nobody reads. Then the exit status tells it, and never a
traceback; only this module knows how.
"""

import os
import sys
from typing import TextIO


def tell(text: str) -> bool:
    """Write to standard output at once; say whether that worked."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except AttributeError:  # it was closed before we were started
        return False
    except BrokenPipeError:
        _give_up(sys.stdout)  # whoever read has seen enough: no reason to say a word
        return False
    except (OSError, UnicodeError, ValueError) as error:
        _give_up(sys.stdout)
        complain(f"can't write to standard output: {getattr(error, 'strerror', None) or error}")
        return False
    return True


def complain(text: str) -> None:
    """Write one line to standard error, if there is one."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except AttributeError:  # as above
        pass
    except (OSError, ValueError):
        _give_up(sys.stderr)


def shown(name: str) -> str:
    """Write a file's name so that it can neither command a terminal nor be taken for another.

    What is printable stands for itself, ``\\`` for ``\\\\``, other bytes for ``\\xNN``.
    """
    return escaped(os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace"))


def escaped(text: str) -> str:
    """Write what is not printable as ``\\xNN``."""
    return "".join(
        one
        if one.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in one.encode("utf-8", "surrogateescape"))
        for one in text
    )


def _give_up(stream: TextIO) -> None:
    """Let the interpreter not try to write the rest at its exit, fail again, and say so."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
