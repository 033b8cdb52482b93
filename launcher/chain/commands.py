"""Commands: the programs that the build runs, each with a log of its own.

A program's output goes to a file; when it fails, the end of that file is shown.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .failure import BuildFailure

LINES_SHOWN = 30
"""Of the log of a program that failed."""


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run ``command`` in ``folder`` with ``environment`` added to ours; append its output to
    ``log``. Raises ``BuildFailure`` when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    with log.open("ab") as output:
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        status = subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status:
        tail = log.read_text(errors="replace").splitlines()[-LINES_SHOWN:]
        text = "\n".join(f"  {line}" for line in tail)
        raise BuildFailure(f"{words[0]} failed (exit {status}); the end of {log}:\n{text}")


def output_of(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """Give what ``command`` prints. Raises ``BuildFailure`` with its errors when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildFailure(f"{' '.join(words)} failed (exit {done.returncode}):\n{done.stderr}")
    return done.stdout
