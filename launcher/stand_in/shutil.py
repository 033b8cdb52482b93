"""What takes the place of the standard library's ``shutil`` in the executable.

``argparse`` asks for the width of the terminal, and nobody copies files.
"""

import os


def get_terminal_size(fallback: tuple[int, int] = (80, 24)) -> os.terminal_size:
    """Give columns and lines of the terminal that is standard output, or ``fallback``."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return os.terminal_size(fallback)
    # A terminal may know nothing of its size.
    return size if size.columns else os.terminal_size(fallback)
