"""The table is what a run found, and what contradicts it is told from what is only newer."""

import pytest

from tests.peers.table import NO, NOT_TRIED, VERSION, YES, Cells, cell, compare, read, written

CELLS: Cells = {
    (VERSION, "nginx"): "1.22.1",
    (VERSION, "Apache"): "2.4.65",
    ("curl", VERSION): "3.0.17",
    ("curl", "nginx"): f"{YES}, TLS 1.3",
    ("curl", "Apache"): NO,
    ("Java", VERSION): "17.0.15",
    ("Java", "nginx"): cell(f"{NOT_TRIED}: java is missing:\n install a | b"),
    ("Java", "Apache"): f"{YES}, TLS 1.2",
}


def test_what_is_written_is_read() -> None:
    before, after = "# Title\n\nWords.\n\n", "\nMore words.\n"
    text = written(f"{before}| a | b |\n|---|---|\n| c | yes |\n{after}", CELLS)
    assert read(text) == CELLS
    assert text.startswith(before + "| client | ")
    assert text.endswith(" |\n" + after)
    assert compare(read(text), CELLS) == ([], [])


@pytest.mark.parametrize(
    "change",
    [
        {("curl", "nginx"): NO},
        {("curl", "nginx"): f"{NOT_TRIED}: curl is missing"},
        {("curl", "nginx"): NO, ("curl", VERSION): "4.0"},
        # The same programs agree on the same version of TLS.
        {("curl", "nginx"): f"{YES}, TLS 1.2"},
        # What has come to work is to be written down, and so is a new pair.
        {("curl", "Apache"): f"{YES}, TLS 1.3"},
        {("curl", "another"): f"{YES}, TLS 1.3"},
    ],
)
def test_a_contradiction(change: Cells) -> None:
    place, said = next(iter(change.items()))
    wrong, _ = compare(CELLS, CELLS | change)
    (line,) = wrong
    assert line.startswith(", ".join(place))
    assert line.endswith(f"this run {said!r}")


def test_a_pair_that_is_in_the_table_only() -> None:
    found = {place: text for place, text in CELLS.items() if place != ("curl", "nginx")}
    (line,), different = compare(CELLS, found)
    assert "this run 'nothing'" in line
    assert not different


@pytest.mark.parametrize("program", [("curl", VERSION), (VERSION, "nginx")])
def test_another_version_is_only_different(program: tuple[str, str]) -> None:
    newer = CELLS | {program: "9.9", ("curl", "nginx"): f"{YES}, TLS 1.4"}
    wrong, different = compare(CELLS, newer)
    assert not wrong
    assert len(different) == 2
