"""What the tools print: to standard output for programs and people, to standard error for people.

Either may be closed, full, or a pipe that nobody reads. Then the exit status tells it, and never a
traceback; only this module knows how. What the locale has no character for is escaped.
"""

import codecs
import io
import os
import sys
from typing import TextIO


def tell(text: str) -> bool:
    """Write to standard output at once; say whether that worked."""
    problem = _write(text, sys.stdout)
    # Who has closed a pipe has seen enough: no reason to say a word.
    if isinstance(problem, OSError | ValueError) and not isinstance(problem, BrokenPipeError):
        complain(f"can't write to standard output: {getattr(problem, 'strerror', None) or problem}")
    return problem is None


def complain(text: str) -> None:
    """Write one line to standard error, if there is one."""
    _write(text + "\n", sys.stderr)


def shown(name: str) -> str:
    """Write a file's name so that it can neither command a terminal nor be taken for another.

    What is printable stands for itself, ``\\`` for ``\\\\``, other bytes for ``\\xNN``.
    """
    return escaped(os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace"))


def escaped(text: str) -> str:
    """Write what is not printable as ``\\xNN``."""
    return "".join(one if one.isprintable() else _bytes_of(one) for one in text)


def _bytes_of(character: str) -> str:
    """Write a character as the bytes that it has in a file's name, each as ``\\xNN``."""
    is_byte = "\udc80" <= character <= "\udcff"
    data = character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Stand in for what can't be encoded; an error handler of ``codecs``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_bytes_of, error.object[error.start : error.end])), error.end


codecs.register_error(_escape.__qualname__, _escape)


def _write(text: str, stream: TextIO) -> Exception | None:
    """Write at once, and escape what the encoding has no character for; give what went wrong."""
    try:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_escape.__qualname__)
        stream.write(text)
        stream.flush()
    except AttributeError as error:  # it was closed before we were started
        return error
    except (OSError, ValueError) as error:
        _give_up(stream)
        return error
    return None


def _give_up(stream: TextIO) -> None:
    """Let the interpreter not try to write the rest at its exit, fail again, and say so."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
