"""What takes the place of the standard library's ``locale`` in the executable.

The locale is "C" and the encoding UTF-8, whatever the environment says (``configure_locale`` and
``utf8_mode`` in ``pyoxidizer.bzl``). ``subprocess`` asks for no more than that.
"""


def getencoding() -> str:
    """Name the encoding of files."""
    return "utf-8"


def getpreferredencoding(do_setlocale: bool = True) -> str:
    """Name the encoding of files."""
    return "utf-8"
