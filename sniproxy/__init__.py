"""A reverse proxy for many TLS services on one address and port that decrypts nothing.

Three parts, in the order in which a connection meets them:

- ``parser``: the bytes of a ClientHello become a host name, or a TLS alert.
- ``resolver``: a host name becomes a connected backend and the PROXY header it asked for.
- ``proxy``: sockets, relay, logs and the life cycle of the process.

``tools`` holds the small commands beside them.
"""

__version__ = "0.1.0"
