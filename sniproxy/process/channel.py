"""The channel between the first process and one of its workers.

A pair of sockets that keep messages apart. A message is the name of an event and its fields, as a
line of the log has them; both ends are the same program, so they are marshalled. The end of the
stream says that the other process has gone.
"""

import contextlib
import marshal
import socket

Fields = dict[str, "int | str"]
Message = tuple[str, Fields]

_MAX_MESSAGE = 64 * 1024


class Channel:
    """One end. Neither sending nor receiving ever waits."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._received: bytes | None = None

    @staticmethod
    def pair() -> "tuple[Channel, Channel]":
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(one), Channel(other)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, event: str, **fields: "int | str") -> bool:
        """Send a message; False says that the other end has gone. Raises BlockingIOError where it
        has not taken many messages before this one."""
        try:
            self._socket.send(marshal.dumps((event, fields)))
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True

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
                self._received = self._socket.recv(_MAX_MESSAGE)
            except BlockingIOError:
                raise
            except OSError:
                return None
        if not self._received:
            return None
        message: Message = marshal.loads(self._received)  # noqa: S302 - our own half wrote it
        return message

    def done(self) -> None:
        """Forget the message that was received, now that it has been acted on."""
        self._received = None
