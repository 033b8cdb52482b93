"""The build's stages: what is done again and what is kept."""

from pathlib import Path

import pytest

from launcher.chain.failure import BuildFailure
from launcher.chain.stages import Stages, digest


def folder(at: Path, **files: str) -> Path:
    at.mkdir()
    for name, text in files.items():
        (at / name).write_text(text)
    return at


def test_a_digest_is_of_names_and_contents_and_not_of_the_place(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", a="1", b="2")
    same = folder(tmp_path / "two", b="2", a="1")
    assert digest(one, "x") == digest(same, "x")


@pytest.mark.parametrize("files", [{"a": "1", "b": "3"}, {"a": "1", "c": "2"}, {"a": "1"}, {}])
def test_a_digest_changes_with_what_is_in_a_folder(tmp_path: Path, files: dict[str, str]) -> None:
    one = folder(tmp_path / "one", a="1", b="2")
    other = folder(tmp_path / "two", **files)
    assert digest(one) != digest(other)


def test_a_digest_keeps_neighbours_apart(tmp_path: Path) -> None:
    assert digest("ab", "c") != digest("a", "bc")
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_text("same")
    other.write_text("same")
    assert digest(one) != digest(other)


def test_a_stage_is_done_once_for_each_key(tmp_path: Path) -> None:
    product, done = tmp_path / "product", []

    def work() -> None:
        done.append(1)
        product.touch()

    for key in ("first", "first", "second", "second"):
        Stages(tmp_path / "stamps").stage("compile", key, [product], work)
    assert len(done) == 2


def test_a_stage_is_done_again_when_its_product_has_gone(tmp_path: Path) -> None:
    product = tmp_path / "product"
    stages = Stages(tmp_path / "stamps")
    stages.stage("compile", "key", [product], product.touch)
    product.unlink()
    stages.stage("compile", "key", [product], product.touch)
    assert product.exists()


def test_a_stage_that_failed_counts_as_undone(tmp_path: Path) -> None:
    product = tmp_path / "product"
    stages = Stages(tmp_path / "stamps")
    stages.stage("compile", "old", [product], product.touch)

    def fail() -> None:
        raise BuildFailure("no")

    with pytest.raises(BuildFailure):
        stages.stage("compile", "new", [product], fail)
    done = []
    # The key of before: what lies there now may be half of the failed one.
    stages.stage("compile", "old", [product], lambda: done.append(1))
    assert done


def test_a_stage_that_makes_nothing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(BuildFailure, match="compile ended without making"):
        Stages(tmp_path / "stamps").stage("compile", "key", [tmp_path / "no"], lambda: None)
