"""The tests that the documentation names as proof are there."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("document", ["security.md", "reliability.md"])
def test_named_tests_exist(document: str) -> None:
    text = (ROOT / "docs" / "explanation" / document).read_text()
    named = NAMED.findall(text)
    assert len(named) > 20
    assert text.count("tests/") >= len(named)
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
        assert not function or function in functions, f"{file}::{function}"
