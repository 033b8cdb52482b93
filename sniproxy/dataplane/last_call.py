"""A listening socket that begins no more connections, while those that it has begun are accepted.

Only for who has the socket alone: it never takes a connection again, whoever has it.
"""

import array
import contextlib
import socket
import struct

_SO_ATTACH_FILTER = 26
"""socket(7), asm-generic/socket.h."""

_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte that holds the flags of the TCP header, RFC 9293 3.1
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # then drop the packet: who sent it tries again
    (0x06, 0, 0, 0xFFFFFFFF),  # else take it: the end of a handshake, or data behind it
)
"""Instructions of a classic filter, linux/filter.h: operation, where to jump, operand."""


def begin_no_more(listening: socket.socket) -> None:
    """Have the kernel begin no more connections; what waits to be accepted is not touched.

    A TCP socket still completes the handshakes that are under way: shutting it down would reset
    them. A Unix socket has none. Where the kernel does not let us, nothing has changed.
    """
    with contextlib.suppress(OSError):
        if listening.family == socket.AF_UNIX:
            listening.shutdown(socket.SHUT_RD)
            return
        program = array.array("B", b"".join(struct.pack("=HBBI", *one) for one in _DROP_SYN))
        address, _ = program.buffer_info()
        # The kernel copies what it is pointed to.
        which = struct.pack("@HP", len(_DROP_SYN), address)
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, which)
