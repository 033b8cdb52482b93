"""Fixtures of the proofs about the executable: the same as from outside, on one file."""

import pathlib
import shlex
import shutil

import pytest

from tests.end_to_end.conftest import backend_of, hashed, proxy, start, tmp_path, workers

__all__ = ["backend_of", "hashed", "proxy", "start", "tmp_path", "workers"]

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def executable(request: pytest.FixtureRequest) -> pathlib.Path:
    """Find the executable: that of ``--sniproxy``, or the one that ``make executable`` makes."""
    option: str | None = request.config.getoption("--sniproxy")
    words = shlex.split(option) if option else [str(ROOT / "dist" / "sniproxy")]
    found = shutil.which(words[0])
    if len(words) > 1 or found is None:
        pytest.skip(f"the executable {' '.join(words)} is missing: say make executable first")
    path = pathlib.Path(found).resolve()
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            pytest.skip(f"{path} is a script; these tests are about the executable")
    return path


@pytest.fixture(scope="session")
def command(executable: pathlib.Path) -> list[str]:
    return [str(executable)]
