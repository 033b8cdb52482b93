"""What the commands say of themselves."""

from sniproxy import __version__, flavour


def version_line(command: str) -> str:
    """Name a command with its version and flavour."""
    return f"{command} {__version__} ({'hashed' if flavour.HASHED else 'plain'})"
