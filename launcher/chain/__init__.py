"""The chain from CPython's source to one static executable, a module for each link of it.

- ``requirements``: what must be on the machine, asked for before anything starts.
- ``sources``: CPython's source, its checksum verified.
- ``interpreter``: the source, configured and compiled for us alone.
- ``modules``: which modules of Python's library go in.
- ``distribution``: interpreter and modules in the format that PyOxidizer reads.
- ``executable``: PyOxidizer and cargo make one file of it.
- ``target``: the machine that it is for.
- ``stages``: what of all this is done again and what is kept.
"""
