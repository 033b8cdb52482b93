"""The names of the hosts directory: which directory a host name is looked up as, and its files.

The flavour of the build decides whether the directory is the host name itself or a hash of it
that shows no name to who reads the hosts directory; only this module knows the difference.
"""

import base64
import functools
import hashlib

from sniproxy import flavour

SOCKET = "tls-socket"
SEND_PROXY_V1 = "send-proxy-v1"
SEND_PROXY_V2 = "send-proxy-v2"


@functools.lru_cache(maxsize=1024)  # most connections ask for the names of a few others
def hashed(host: str) -> str:
    """Hash a canonical host name: BLAKE2s-256 (RFC 7693) in unpadded URL-safe base64 (RFC 4648
    section 5), always 43 characters."""
    digest = hashlib.blake2s(host.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def plain(host: str) -> str:
    """Name the directory after the canonical host name itself: at most 254 characters."""
    return host


directory_name = hashed if flavour.HASHED else plain
"""The name of a canonical host name's directory in this build."""
