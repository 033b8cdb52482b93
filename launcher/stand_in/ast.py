"""What takes the place of the standard library's ``ast`` in the executable.

``inspect`` uses it to find a class in source text and to parse the signatures that C functions
write into their docstrings. The executable has neither. Only the name of the base class is needed,
when ``inspect`` is imported.
"""


class NodeVisitor:
    """Visit nothing."""
