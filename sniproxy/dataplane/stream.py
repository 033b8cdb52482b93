"""What the kernel knows of a stream socket, and nobody else has to remember."""

import fcntl
import sys
from socket import AF_UNIX, IPPROTO_TCP, TCP_INFO, SocketType
from struct import Struct

_SIOCOUTQ = 0x5411
"""Of ioctl(2): how much of what was sent has not been taken, tcp(7) and unix(7)."""

_UNIX = int(AF_UNIX)
_IDLE = Struct("=44xI4xI")
"""Of struct tcp_info, linux/tcp.h: milliseconds since data was sent, and since it came."""


def queued(stream: SocketType) -> int:
    """Give how much the kernel still holds of what was sent: of TCP the bytes that the other end
    has not acknowledged, of a Unix socket the memory of the messages that it has not read."""
    answer = fcntl.ioctl(stream.fileno(), _SIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def idle(stream: SocketType) -> int | None:
    """Give the milliseconds since data was sent or came; None of a Unix socket, which has no such
    clock. Raises OSError."""
    if stream.family == _UNIX:
        return None
    sent: int
    came: int
    sent, came = _IDLE.unpack(stream.getsockopt(IPPROTO_TCP, TCP_INFO, _IDLE.size))
    return min(sent, came)
