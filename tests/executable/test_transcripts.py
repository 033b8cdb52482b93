"""What the tools say is the same from the executable."""

from collections.abc import Callable

import pytest

from tests.transcript import cases


@pytest.mark.parametrize("case", cases())
def test_transcript(case: str, play: Callable[[str], None], hashed: bool) -> None:
    if hashed and case.startswith(("sniproxy-check", "sniproxy-hostname")):
        pytest.skip("not applicable: what they say is about names of the plain flavour")
    play(case)
