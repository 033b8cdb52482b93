"""``sniproxy-hostname``: the name of the directory in which a host's files are looked for.

International names go through UTS #46 as in browsers: non-transitional, CheckBidi and CheckJoiners
on, CheckHyphens off; instead of UseSTD3ASCIIRules the grammar of ``parser.host_name`` decides. The
mapping, the bidi rule and the joiner rules are idna's; its IDNA 2008 code point classes are not
used, since they exclude names that browsers ask for (emoji).
"""

import errno
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence

import idna

from sniproxy.parser.host_name import MAX_LENGTH, canonical
from sniproxy.resolver.naming import DEFAULT, NO_SERVER_NAME, WILDCARD, directory_name
from sniproxy.tools.command_line import CommandLine
from sniproxy.tools.output import complain, tell

MAX_LABEL = 63
"""Bytes: "Labels must be 63 characters or less" (RFC 1035 section 2.3.1)."""

MAX_INPUT = 1000
"""Characters that are looked at: four times what a valid name can have, since some are mapped to
nothing; Punycode takes time with the square of its input."""

_ACE_PREFIX = "xn--"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")
_RIGHT_TO_LEFT = {"R", "AL", "AN"}


class InvalidNameError(ValueError):
    """The text is no host name; says what is wrong with it."""


def entry(name: str) -> str:
    """Give the entry for ``name``, which may also be ``*.`` and a name, as in certificates, or the
    name of an entry that serves many hosts. Raises InvalidNameError."""
    if name in (DEFAULT, NO_SERVER_NAME):
        return name
    if name.startswith(("*.", WILDCARD)):
        wildcard = WILDCARD + to_ascii(name[2:])
        if len(wildcard) > MAX_LENGTH:
            raise InvalidNameError(f"leaves no room for a label: {MAX_LENGTH} bytes are allowed")
        return wildcard
    return to_ascii(name)


def to_ascii(name: str) -> str:
    """Give the A-labels of ``name`` without a trailing dot. Raises InvalidNameError."""
    if not name:
        raise InvalidNameError("is empty")
    if len(name) > MAX_INPUT:
        raise InvalidNameError(f"has {len(name)} characters: {MAX_LENGTH} bytes are allowed")
    try:
        mapped = _mapped(name)
    except idna.IDNAError as error:
        wrong = _at(name, (error.position or 1) - 1)
        raise InvalidNameError(f"has {wrong}, which no host name may have") from None
    labels = mapped.removesuffix(".").split(".")
    if "" in labels:
        raise InvalidNameError("has an empty label: look for a dot at the start or two in a row")
    for label in labels:
        # Before anything else: Punycode is no shorter, and idna has a limit of its own.
        if len(label) > MAX_LABEL:
            raise InvalidNameError(
                f"has a label of {len(label)} characters: the DNS allows {MAX_LABEL} bytes"
            )
    shown = [_unicode_label(label) for label in labels]
    if any(unicodedata.bidirectional(one) in _RIGHT_TO_LEFT for label in shown for one in label):
        for label in shown:
            _check_bidi(label)
    ascii_name = ".".join(_ascii_label(label) for label in shown)
    for label in ascii_name.split("."):
        if len(label) > MAX_LABEL:
            raise InvalidNameError(f"has a label of {len(label)} bytes: the DNS allows {MAX_LABEL}")
    if len(ascii_name) > MAX_LENGTH:
        raise InvalidNameError(f"is {len(ascii_name)} bytes long: at most {MAX_LENGTH} are allowed")
    host = canonical(ascii_name.encode("ascii"))
    if host is None:
        raise InvalidNameError(_outside_the_grammar(name, ascii_name))
    return host


def _mapped(name: str) -> str:
    """Map a name by UTS #46 section 4, steps 1 and 2. Raises idna.IDNAError."""
    return idna.uts46_remap(name, std3_rules=False, transitional=False)


def _stays(character: str) -> bool:
    """Say whether a character may be in a name and is mapped to no other."""
    try:
        return _mapped(character) == character
    except idna.IDNAError:
        return False


def _outside_the_grammar(name: str, ascii_name: str) -> str:
    """Say what in ``name``, which became ``ascii_name``, is in no host name."""
    wrong = set(_NOT_IN_NAMES.findall(ascii_name))
    for position, character in enumerate(name):
        # What is typed may be another character, such as a fraction, which becomes a slash.
        if wrong & set(_mapped(character)):
            return f"has {_at(name, position)}: only a-z, 0-9, -, _ and . can be looked up"
    return "has a label that starts with a hyphen or an underscore"


def _at(text: str, position: int) -> str:
    """Name a character so that nothing is printed which a terminal could take for a command."""
    character = text[position]
    where = f"at position {position + 1}"
    if "\udc80" <= character <= "\udcff":  # as os.fsdecode has it
        return f"a byte that is no UTF-8 ({ord(character) - 0xDC00:02X}) {where}"
    described = unicodedata.name(character, "")
    return f"U+{ord(character):04X} {described + ' ' if described else ''}{where}"


def _unicode_label(label: str) -> str:
    """Decode and validate one mapped label, UTS #46 sections 4 (step 4) and 4.1."""
    if label.startswith(_ACE_PREFIX):
        try:
            decoded = label[len(_ACE_PREFIX) :].encode("ascii").decode("punycode")
        except UnicodeError:
            raise InvalidNameError(f"has a label that is no Punycode: {label!a}") from None
        if _ascii_label(decoded) != label:
            raise InvalidNameError(f"has a label that encodes nothing international: {label!a}")
        for position, character in enumerate(decoded):
            if character == "." or not _stays(character):
                wrong = _at(decoded, position)
                raise InvalidNameError(f"has a label that decodes to {wrong}: {label!a}")
        label = decoded
    if label.isascii():
        return label
    if unicodedata.normalize("NFC", label) != label:
        raise InvalidNameError(f"has a label that is not in normal form C: {label!a}")
    if label.startswith(_ACE_PREFIX):
        raise InvalidNameError(f"has a label that starts with xn-- and is not ASCII: {label!a}")
    if unicodedata.category(label[0])[0] == "M":
        raise InvalidNameError(f"has a label that starts with a combining mark: {_at(label, 0)}")
    for position, character in enumerate(label):
        if character in "\u200c\u200d" and not _joins(label, position):
            raise InvalidNameError(
                f"has {_at(label, position)} of {label!a}, where it joins nothing"
            )
    return label


def _joins(label: str, position: int) -> bool:
    """Check a zero width (non-)joiner, RFC 5892 appendices A.1 and A.2."""
    try:
        return idna.valid_contextj(label, position)
    except ValueError:
        return False


def _check_bidi(label: str) -> None:
    """Check one label of a Bidi domain name, RFC 5893 section 2."""
    try:
        idna.check_bidi(label, check_ltr=True)
    except idna.IDNAError as error:
        wrong = f": look at {_at(label, error.position - 1)}" if error.position else ""
        raise InvalidNameError(f"mixes writing directions in {label!a}{wrong}") from None


def _ascii_label(label: str) -> str:
    """Encode a label that is not ASCII by Punycode, RFC 3492."""
    if label.isascii():
        return label
    try:
        return _ACE_PREFIX + label.encode("punycode").decode("ascii")
    except UnicodeError:
        raise InvalidNameError(f"has a label that can't be encoded: {label!a}") from None


def _names(arguments: Sequence[str]) -> Iterable[str]:
    """Give the names of the command line, or of standard input, a line each; skip blank lines."""
    if arguments:
        yield from arguments
        return
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    # readline, so that somebody who types names sees each answer at once.
    for line in iter(sys.stdin.buffer.readline, b""):
        name = line.strip().decode("utf-8", "surrogateescape")
        if name:
            yield name


def main(arguments: Sequence[str]) -> int:
    parser = CommandLine(
        "sniproxy-hostname",
        failure=1,
        description="Print the name of the directory that sniproxy looks for, one line a name.",
        epilog="Manual: man 1 sniproxy-hostname. Exit status: 0 if all names are valid, 1 if not.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="host names, or *.NAME, _default, _nosni; without any, read standard input",
    )
    given = parser.parse_args(arguments).names
    status = 0
    try:
        for name in _names(given):
            try:
                if not tell(directory_name(entry(name)) + "\n"):
                    return 1
            except InvalidNameError as error:
                status = 1
                # A long one would fill the screen.
                shown = f"{name!a}" if len(name) <= MAX_LENGTH else f"{name[:60]!a}..."
                complain(f"sniproxy-hostname: {shown} {error}")
    except OSError as error:
        complain(f"sniproxy-hostname: can't read names from standard input: {error.strerror}")
        return 1
    return status
