"""A worker process, as the supervisor sees it."""

import signal
import time

from sniproxy.process.channel import Channel

NOBODY = -1
"""In place of a worker's number, or of its process."""


class Worker:
    """Worker ``number``, at the other end of a channel. All times are of the monotonic clock."""

    def __init__(self, number: int, channel: Channel, part: int = 0) -> None:
        self.number = number
        self.part = part
        """Which part of the counts is its own."""
        self.answers = True
        """Whether it has said in time what it was asked for, and where it has not, has since."""
        self.channel = channel
        self.started = time.monotonic()
        self.told_to_look = float("-inf")
        self.pid = NOBODY
        self.code: int | None = None
        """How it ended, as far as that is known."""
        self.open = 0
        """Connections, when it was last asked."""
        self.patience = float("inf")
        """When it is killed, while it hands over."""

    def tell(self, event: str, *, last: bool = False, **fields: int | str) -> None:
        """Send a message. One that hangs has not heard hundreds before; of those that come then,
        only the ``last`` must not be lost, and the end of the stream is one."""
        try:
            self.channel.send(event, **fields)
        except BlockingIOError:
            if last:
                self.channel.end()

    def how_it_ended(self) -> str:
        """Say its status or its signal."""
        if self.code is None:
            return "unknown"
        if self.code >= 0:
            return f"status_{self.code}"
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal_{-self.code}"  # a real-time signal, most of which have no name
