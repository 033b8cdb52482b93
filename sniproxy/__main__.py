"""``python3 -m sniproxy`` is the command ``sniproxy``."""

import sys

from sniproxy.commands import sniproxy

sys.exit(sniproxy())
