"""What the commands say of themselves."""

from sniproxy import __version__, flavour

FORMATS_OPTION = "--hand-over-formats"
"""What a process asks the program that is to go on with its connections."""


def version_line(command: str) -> str:
    """Name a command with its version and flavour."""
    return f"{command} {__version__} ({'hashed' if flavour.HASHED else 'plain'})"
