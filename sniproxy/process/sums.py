"""Sums: what several processes have said of one event, as one."""

from sniproxy.dataplane.refusals import bounded
from sniproxy.process.channel import Fields


def added(one: Fields, other: Fields) -> Fields:
    """Add numbers to those of the same name; a word just stands. Of names that clients make up no
    more are kept than one process counts."""
    total = {**one}
    for name, value in other.items():
        have = total.get(name, 0)
        total[name] = have + value if isinstance(have, int) and isinstance(value, int) else value
    return bounded(total)
