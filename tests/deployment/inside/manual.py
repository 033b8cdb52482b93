"""The blocks of the manual (docs/) and of README: what they say to type or to write, as text.

A test takes a block by ``block``, in so many words, so that ``tests/test_operations.py`` can tell
from the tests' source which blocks are run. One that a person has to run says so: the paragraph
above it has *by hand* in it. A fence that begins with ```` ```text ```` is a picture, and no block.
"""

import dataclasses
import pathlib
import re
import textwrap

BY_HAND = "*by hand*"

_FOLDERS = pathlib.Path(__file__).resolve().parents
PLACES = (*_FOLDERS, *(folder / "docs" for folder in _FOLDERS))
"""Where the documents are: in a booted machine beside this file, else in the repository."""

_PIECE = re.compile(
    r"^#+ (?P<heading>.+)$"
    r"|^ *(?P<fence>```+|~~~+) *(?P<language>\w*).*\n(?P<fenced>(?:.*\n)*?) *(?P=fence)`*~*$"
    r"|(?P<indented>(?:^(?: {4}|\t).*\n|^\n(?= {4}|\t))+)"
    r"|(?P<paragraph>(?:^(?! {4}|\t| *```| *~~~|#+ ).*\S.*\n)+)",
    re.MULTILINE,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A block: under which heading, its number there (from 0), and its lines."""

    heading: str
    number: int
    text: str
    by_hand: bool


def blocks(document: str) -> list[Block]:
    """Find all blocks of a document, which is named as ``README.md`` or ``how-to/users.md``."""
    text = next(path for place in PLACES if (path := place / document).exists()).read_text()
    found: list[Block] = []
    heading = above = ""
    number = 0
    for piece in _PIECE.finditer(text):
        if piece["heading"]:
            heading, number, above = piece["heading"], 0, ""
        elif piece["paragraph"]:
            above = piece["paragraph"]
        elif piece["language"] != "text":
            lines = textwrap.dedent(piece["fenced"] or piece["indented"]).strip("\n") + "\n"
            found.append(Block(heading, number, lines, BY_HAND in above))
            number, above = number + 1, ""
    return found


def block(document: str, heading: str, number: int = 0) -> str:
    """Give a block's text. It is to be called with literals, in a test or a fixture."""
    (text,) = [
        one.text for one in blocks(document) if (one.heading, one.number) == (heading, number)
    ]
    return text
