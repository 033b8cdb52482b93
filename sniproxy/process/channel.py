"""The channel between the first process and one of its workers.

A pair of sockets that keep messages apart. A message is the name of an event and its fields, as a
line of the log has them; both ends are the same program, so they are marshalled. The end of the
stream says that the other process has gone.
"""

import _socket
import contextlib
import marshal
import os
import socket
import struct

Fields = dict[str, "int | str"]
Message = tuple[str, Fields]

_MAX_MESSAGE = 64 * 1024
_DESCRIPTOR = struct.Struct("i")
_LOOK = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC


class Channel:
    """One end. Neither sending nor receiving ever waits."""

    def __init__(self, end: socket.SocketType) -> None:
        end.setblocking(False)
        self._socket = end
        self._received: bytes | None = None
        self._start = bytearray(1)
        self.descriptor = -1
        """What came with the message that is being acted on."""

    @staticmethod
    def pair() -> "tuple[Channel, Channel]":
        # Not that of ``socket``, which makes other objects of these: a descriptor is lost where
        # memory fails between them.
        one, other = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(one), Channel(other)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, event: str, **fields: "int | str") -> bool:
        """Send a message; False says that the other end has gone. Raises BlockingIOError where it
        has not taken many messages before this one."""
        message = _written(event, fields)
        try:
            self._socket.send(message)
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True

    def send_descriptor(self, event: str, descriptor: int, **fields: "int | str") -> None:
        """Send a message with a copy of a descriptor. Raises OSError."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))
        self._socket.sendmsg([_written(event, fields)], [rights])

    def end(self) -> None:
        """Send nothing more: behind the messages that it still has, the other end sees the end of
        the stream. What it sends can still be received."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def receive(self) -> Message | None:
        """Give the next message, None when the other end has gone. Raises BlockingIOError.

        The same is given again until it was ``done``.
        """
        if self._received is None:
            try:
                # Only looked at: where memory fails for the answer, it is still there.
                data, ancillary, _, _ = self._socket.recvmsg(
                    _MAX_MESSAGE, socket.CMSG_LEN(_DESCRIPTOR.size), _LOOK
                )
                for _, _, rights in ancillary:
                    (self.descriptor,) = _DESCRIPTOR.unpack(rights)
                self._received = data
            except BlockingIOError:
                raise
            except ConnectionResetError:
                # It has left something of ours unread. That is told once; what it said is there.
                return self.receive()
            except OSError:
                return None
        if not self._received:
            return None
        message: Message = marshal.loads(self._received)  # noqa: S302 - our own half wrote it
        return message

    def done(self) -> None:
        """Forget the message that was received, now that it has been acted on."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        if self._received:
            # Takes the whole message, and needs no memory.
            with contextlib.suppress(OSError):
                self._socket.recv_into(self._start)
        self._received = None


def _written(event: str, fields: Fields) -> bytes:
    try:
        return marshal.dumps((event, fields))
    except ValueError:
        # "Unmarshallable": so it calls what it has no memory to remember.
        raise MemoryError from None
