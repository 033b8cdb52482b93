"""Entries: what an entry of the hosts directory is for, by its name, and which wins over which.

Names that only another flavour looks up are told as such.
"""

import enum
import os
import re
from collections.abc import Iterable

from sniproxy import flavour
from sniproxy.parser.host_name import MAX_LENGTH, canonical
from sniproxy.resolver import naming

_HASH = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
"""32 bytes in unpadded URL-safe base64."""


class Kind(enum.StrEnum):
    """Whom an entry serves: a host, or many."""

    HOST = "host"
    WILDCARD = "wildcard"
    DEFAULT = "default"
    NO_SERVER_NAME = "nosni"


def kind_of(name: str) -> Kind | None:
    """Say what an entry is for; None where nobody is ever led to it. (Of a hash nobody can say
    whether it is that of a wildcard.)"""
    if name == naming.directory_name(naming.DEFAULT):
        return Kind.DEFAULT
    if name == naming.directory_name(naming.NO_SERVER_NAME):
        return Kind.NO_SERVER_NAME
    if flavour.HASHED:
        return Kind.HOST if _HASH.fullmatch(name) else None
    parent = name.removeprefix(naming.WILDCARD)
    if canonical(os.fsencode(parent)) != parent or len(name) > MAX_LENGTH:
        return None
    return Kind.HOST if parent == name else Kind.WILDCARD


def why_never(name: str) -> str:
    """Say why nobody is led to an entry, and what to do."""
    from sniproxy.tools.hostname import InvalidNameError, entry  # noqa: PLC0415

    if not flavour.HASHED and _HASH.fullmatch(name):
        return "is a hash: only the hashed flavour looks it up, and this is the plain one"
    try:
        # As people typed it, whatever encoding our locale has.
        meant = entry(os.fsencode(name).decode("utf-8"))
    except (InvalidNameError, UnicodeError):
        meant = None
    if flavour.HASHED:
        what = "is not the hash of a host name: this is the hashed flavour, "
        if meant is None:
            return f"{what}sniproxy-hostname prints the name to use"
        return f"{what}rename it to {naming.hashed(meant)}"
    if meant is None:
        return "can never be asked for: it is no host name"
    return f"is not canonical: rename it to {meant}"


def hosts_by_parent(names: Iterable[str]) -> dict[str, list[str]]:
    """Sort the entries that have a host's name by what is behind its first label: each of them wins
    over the wildcard for that."""
    below: dict[str, list[str]] = {}
    for name in names:
        if kind_of(name) is Kind.HOST:
            below.setdefault(name.partition(".")[2], []).append(name)
    return below
