"""What takes the place of the standard library's ``gettext`` in the executable.

``argparse`` sends its words through it. There are no translations inside, and none are looked for
in the file system.
"""


def gettext(message: str) -> str:
    """Give the message itself."""
    return message


def ngettext(singular: str, plural: str, number: int) -> str:
    """Choose as English does."""
    return singular if number == 1 else plural
