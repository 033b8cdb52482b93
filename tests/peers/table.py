"""The table of who speaks with whom: from what a run found to docs/reference/peers.md and back.

A cell's place is its row's and its column's title: a client and a server. The first row and the
first column hold the versions of the programs. How a run may differ from the table without being
wrong is decided here alone.
"""

import re

VERSION = "version"
YES, NO, NOT_TRIED = "yes", "no", "not tried"
"""How a cell begins."""

Cells = dict[tuple[str, str], str]


def written(text: str, cells: Cells) -> str:
    """Put the table of these cells in the place of a document's first table."""
    columns = list(dict.fromkeys([VERSION, *(column for _, column in cells)]))
    rows = list(dict.fromkeys(row for row, _ in cells))
    lines = [["client", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(cells.get((row, column), "") for column in columns)] for row in rows]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return re.sub(r"(?m)(?:^\|.*\n)+", lambda _: table, text, count=1)


def read(text: str) -> Cells:
    """Read the cells of a document's only table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    (_, *columns), _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines
    ]
    return {
        (row, column): cell
        for row, *line in rows
        for column, cell in zip(columns, line, strict=True)
        if cell
    }


def cell(text: str) -> str:
    """Make one line of a text that may have any signs in it, such as a compiler's complaint."""
    return " ".join(text.replace("|", "/").split())


def compare(documented: Cells, found: Cells) -> tuple[list[str], list[str]]:
    """Say what of a table a run contradicts, and what else is different.

    Versions of programs may differ; so may, if they do, the version of TLS that the two agree on.
    """
    wrong, different = [], []
    for place in dict.fromkeys([*documented, *found]):
        row, column = place
        table, run = (cells.get(place, "nothing") for cells in (documented, found))
        if table == run:
            continue
        programs = [(row, VERSION), (VERSION, column)]
        other_programs = any(documented.get(one) != found.get(one) for one in programs)
        speaks_in_both = table.startswith(YES) and run.startswith(YES)
        harmless = VERSION in place or (speaks_in_both and other_programs)
        line = f"{row}, {column}: the table says {table!r}, this run {run!r}"
        (different if harmless else wrong).append(line)
    return wrong, different
