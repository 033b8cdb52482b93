"""Which flavour this build is: the one flag that a build may set.

A source install with ``SNIPROXY_HASHED=1`` in the environment (see ``setup.py``) and the hashed
executable replace this module; nothing else differs between the flavours.
"""

HASHED: bool = False
