"""The unit: how systemd starts sniproxy on this machine.

Its files are read, by the rules of systemd.unit(5) and systemd.syntax(7): systemctl can ask only
where systemd runs, and what it says is what was loaded last.
"""

import contextlib
import os

PLACES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
"""Where units of the system lie; of files with one name, the first counts."""

_UNIT = "sniproxy.service"
_DROP_INS = ("service.d", f"{_UNIT}.d")
"""Directories of drop-ins; of files with one name, the one for this unit alone counts."""

_LARGEST_FILE = 1 << 20


def service_settings() -> dict[str, str]:
    """Give what the installed unit says in its section [Service], the last of each; nothing where
    there is no unit."""
    said: dict[str, str] = {}
    for text in _texts():
        section = ""
        for line in text.replace("\\\n", " ").splitlines():
            key, _, value = (part.strip() for part in line.partition("="))
            if key.startswith("["):
                section = key
            elif section == "[Service]":
                said[key] = value
    return {key: value for key, value in said.items() if value}


def _texts() -> list[str]:
    """Read the unit and its drop-ins, in the order in which they count; none without a unit."""
    units = [f"{place}/{_UNIT}" for place in PLACES if os.path.lexists(f"{place}/{_UNIT}")]
    if not units or os.path.realpath(units[0]) == os.devnull:
        return []  # not installed, or masked
    drop_ins: dict[str, str] = {}
    for kind in _DROP_INS:
        for place in reversed(PLACES):
            directory = f"{place}/{kind}"
            with contextlib.suppress(OSError):  # there is none, or it is closed to us
                for name in os.listdir(directory):
                    if name.endswith(".conf"):
                        drop_ins[name] = f"{directory}/{name}"
    return [_read(path) for path in (units[0], *(drop_ins[name] for name in sorted(drop_ins)))]


def _read(path: str) -> str:
    """Give what a file says, nothing where it can't be read or a link to /dev/null masks it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LARGEST_FILE)
    except OSError:
        return ""
