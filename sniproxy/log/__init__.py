"""The log: lines of ``key=value``, and the ways to standard error that never block."""
