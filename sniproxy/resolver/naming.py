"""The names of the hosts directory: which directory a host name is looked up as, and its files.

An entry serves the host that it is called after. Those whose names begin with an underscore, which
no client can ask for, serve many. The flavour of the build decides whether the directory is the
name itself or a hash of it that shows no name to who reads the hosts directory; only this module
knows the difference.
"""

import base64
import functools
import hashlib

from sniproxy import flavour

SOCKET = "tls-socket"
ACME_SOCKET = "acme-tls-socket"
"""Where there is one, it gets the connections that validate the host (RFC 8737)."""
SEND_PROXY_V1 = "send-proxy-v1"
SEND_PROXY_V2 = "send-proxy-v2"
WAIT_FOR_BACKEND = "wait-for-backend"

WILDCARD = "_."
"""What the entry begins with that serves all names with one label in place of the underscore."""

DEFAULT = "_default"
"""The entry for every other name."""

NO_SERVER_NAME = "_nosni"
"""The entry for clients that send no server name."""


def fallbacks(host: str) -> tuple[str, ...]:
    """List the entries that may serve a host name (none: empty) without a directory of its own."""
    if not host:
        return (NO_SERVER_NAME,)
    _, dot, parent = host.partition(".")
    return (WILDCARD + parent, DEFAULT) if dot else (DEFAULT,)


@functools.lru_cache(maxsize=1024)  # most connections ask for the names of a few others
def hashed(host: str) -> str:
    """Hash the name of an entry: BLAKE2s-256 (RFC 7693) in unpadded URL-safe base64 (RFC 4648
    section 5), always 43 characters."""
    digest = hashlib.blake2s(host.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def plain(host: str) -> str:
    """Name the directory after the canonical host name itself, or as the entry that serves many:
    at most 254 characters."""
    return host


directory_name = hashed if flavour.HASHED else plain
"""The directory of an entry in this build."""
