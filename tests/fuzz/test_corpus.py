"""Every input of the corpus, once more, without the fuzzer."""

import pytest

from tests.fuzz.corpus import load, seeds
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", list(TARGETS))
def test_corpus(target: str) -> None:
    inputs = load(target)
    assert inputs
    for data in inputs + seeds(target):
        try:
            TARGETS[target](data)
        except BaseException as error:
            raise AssertionError(data.hex()) from error
