"""Processes of a test's own, for what must not happen to the test run itself."""

import ctypes
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable

PATIENCE = 60
"""Seconds after which a process that hangs is ended."""

NUMBERS = {
    "clone": {"x86_64": 56, "aarch64": 220},
    "socket": {"x86_64": 41, "aarch64": 198},
    "setsockopt": {"x86_64": 54, "aarch64": 208},
    "write": {"x86_64": 1, "aarch64": 64},
    "splice": {"x86_64": 275, "aarch64": 76},
    "ftruncate": {"x86_64": 77, "aarch64": 46},
}
"""Of system calls, from the kernel's asm/unistd_64.h and asm-generic/unistd.h."""


class _Filter(ctypes.Structure):
    """A program for the kernel: struct sock_fprog, linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid(call: str, error: int, only: int | None = None, *, argument: int = 0) -> None:
    """Have a system call fail in this process from now on, seccomp(2).

    With ``only``, only those of which an argument, the first, is that number of 32 bits."""
    number = NUMBERS[call][platform.machine()]
    # Load the number of the call, or its argument; where it is another, jump to the last step.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1 if only is None else 3, number)]
    if only is not None:
        low_half = 16 + 8 * argument + (0 if sys.byteorder == "little" else 4)
        steps += [(0x20, 0, 0, low_half), (0x15, 0, 1, only)]
    # Return the error, or allow it.
    steps += [(0x06, 0, 0, 0x50000 | error), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(
        operation.to_bytes(2, sys.byteorder)
        + bytes([if_true, if_false])
        + value.to_bytes(4, sys.byteorder)
        for operation, if_true, if_false, value in steps
    )
    system = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, filter_mode = 38, (22, 2)
    if system.prctl(no_new_privileges, 1, 0, 0, 0) or system.prctl(
        *filter_mode, ctypes.byref(_Filter(len(steps), code))
    ):
        raise OSError(ctypes.get_errno(), "prctl")


def in_child(work: Callable[[], object]) -> None:
    """Do something in a forked process; fail where it fails there."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        status = 1
        signal.alarm(PATIENCE)
        try:
            work()
            status = 0
        except BaseException:  # whatever it was, this process must not go on as the test run
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
