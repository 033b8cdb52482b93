"""What takes the place of the standard library's ``linecache`` in the executable.

There is no source inside, and what lies in the working directory is not ours: a traceback or a
warning that looked for a file named after a module would open whatever somebody put there, a FIFO
for example, and wait for ever. So every line of every file is empty here, and nothing is opened.
"""

_Globals = dict[str, object]

cache: dict[str, object] = {}


def getline(filename: str, lineno: int, module_globals: _Globals | None = None) -> str:
    """Give no line."""
    return ""


def getlines(filename: str, module_globals: _Globals | None = None) -> list[str]:
    """Give no lines."""
    return []


def updatecache(filename: str, module_globals: _Globals | None = None) -> list[str]:
    """Give no lines."""
    return []


def lazycache(filename: str, module_globals: _Globals) -> bool:
    """Promise nothing for later."""
    return False


def checkcache(filename: str | None = None) -> None:
    """Have nothing to check."""


def clearcache() -> None:
    """Have nothing to forget."""
