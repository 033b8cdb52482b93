"""Linux capabilities: the parts of root's rights that a process may hold by itself.

Python's library can't set them. From source ctypes calls the C library; the executable, which loads
nothing at run time, has the launcher's own function.
"""

import os
import struct
import sys
from collections.abc import Callable

LAUNCHER = "_launcher"
"""The module that the executable's launcher makes before anything of ours is imported."""

_HEADER = struct.pack("=Ii", 0x20080522, 0)
"""_LINUX_CAPABILITY_VERSION_3, and 0 for this process (capset(2))."""

_NONE = bytes(24)
"""No bit of the effective, permitted and inheritable ones, each of two words of 32."""


def dropper() -> Callable[[], None]:
    """Give the function that drops all capabilities; it imports nothing any more.

    The ambient ones, which a command would start with, go with the inheritable ones. The function
    raises OSError.
    """
    launcher = sys.modules.get(LAUNCHER)
    if launcher is not None:
        drop: Callable[[], None] = launcher.drop_capabilities
        return drop
    import ctypes  # noqa: PLC0415

    capset = ctypes.CDLL(None, use_errno=True).capset

    def drop_by_ctypes() -> None:
        if capset(ctypes.create_string_buffer(_HEADER), _NONE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return drop_by_ctypes
