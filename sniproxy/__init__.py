"""A reverse proxy for many TLS services on one address and port that decrypts nothing.

The parts, in the order in which a connection meets them:

- ``parser``: the bytes of a ClientHello become a host name, or a TLS alert.
- ``resolver``: a host name becomes a connected backend and the PROXY header it asked for.
- ``dataplane``: what a byte meets, from the accept to the close.
- ``process``: what the operating system meets: sockets that are passed, signals, workers.
- ``log``: what both have to say.

``tools`` holds the small commands beside them.
"""

__version__ = "0.2.0"
