"""Host names: which bytes of a server_name extension may become a path.

Only this module decides what a host name is. What passes has none of the characters that mean
something to a file system (no ``/``, no NUL, no ``.`` or ``..`` as a component) and only one
spelling, so that the file system's own uniqueness is the uniqueness of host names.
"""

import functools
import re

MAX_LENGTH = 254
"""Bytes. A name in the DNS has at most 253 without its trailing dot (RFC 1035 section 2.3.4);
the directory entry of such a name still fits NAME_MAX (255)."""

# RFC 6066 section 3: "HostName" is "a byte string using ASCII encoding without a trailing dot".
# Departure: one trailing dot is taken off, since some clients send it as people typed it; labels
# are neither limited to 63 bytes nor forbidden to end in a hyphen; and a label may have underscores
# (browsers and certificates know such names), though not in front: no client can ask for an entry
# whose name begins with one. Literal addresses of IPv4 are names like others.
_HOST_NAME = re.compile(rb"([A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9][A-Za-z0-9_-]*)*)\.?")


def canonical(name: bytes) -> str | None:
    """Give the one spelling of ``name`` that is looked up, or None if it is no host name."""
    return _canonical(name) if len(name) <= MAX_LENGTH + 1 else None


@functools.lru_cache(maxsize=1024)  # most connections ask for the names of a few others
def _canonical(name: bytes) -> str | None:
    """Do so for a name that is short enough: what a cache keeps has a bound in bytes."""
    match = _HOST_NAME.fullmatch(name)
    if match is None or len(match[1]) > MAX_LENGTH:
        return None
    return match[1].decode("ascii").lower()


def shown(name: bytes) -> str:
    """Write a name that is no host name for the log, which escapes it: what is shown is cut."""
    text = name[:MAX_LENGTH].decode("latin-1")
    return text if len(name) <= MAX_LENGTH else f"{text}..."
