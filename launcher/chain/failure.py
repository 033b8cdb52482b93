"""The one error of the build: what was expected, what was found, and what to do."""


class BuildFailure(Exception):  # noqa: N818 - a failure, not a fault of this code
    """The build can't go on; the text is for the person who started it."""
