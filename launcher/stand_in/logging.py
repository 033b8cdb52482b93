"""What takes the place of the standard library's ``logging`` in the executable.

Only the standard library's own messages would come here, and the real one would print them, with a
traceback, to standard error: under inetd and systemd that may be the listening socket itself. The
program has a log of its own (``sniproxy.log.log``). So these are dropped.
"""

DEBUG, INFO, WARNING, ERROR, CRITICAL = 10, 20, 30, 40, 50


class Logger:
    """Drop what is logged."""

    def __init__(self, name: str) -> None:
        self.name = name

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        """Ask for no message."""
        return False

    def log(self, level: int, message: object, *arguments: object, **options: object) -> None:
        """Drop a message."""

    def debug(self, message: object, *arguments: object, **options: object) -> None:
        """Drop a message."""

    info = warning = error = exception = critical = debug


_root = Logger("root")
exception = _root.exception


def getLogger(name: str = "root") -> Logger:  # noqa: N802
    """Give a logger, each time a new one."""
    return Logger(name)
