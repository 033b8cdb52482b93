"""The console of a machine that tests boot, be it a container or emulated."""

import subprocess
from collections.abc import Sequence


def console(command: Sequence[str], seconds: float) -> str:
    """Run a machine until it is off; give what came on its console."""
    try:
        return subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        ).stdout
    except subprocess.TimeoutExpired as error:
        return f"{(error.stdout or b'').decode(errors='replace')}\nnot finished after {seconds} s\n"
