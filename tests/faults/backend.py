"""A backend for the attacks: it answers each hello with "served" and echoes what follows.

``--deaf`` never reads, ``--first`` sends its word before it has read anything and half-closes,
``--reset`` closes in the middle of the stream with bytes unread.
"""

import argparse
import asyncio
import os
import socket
import sys


class Echo(asyncio.Protocol):
    """Answers the first record with a word, then echoes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._start: bytes | None = b""
        if OPTIONS.deaf:
            transport.pause_reading()
        if OPTIONS.first:
            transport.write(b"served")
            transport.write_eof()

    def data_received(self, data: bytes) -> None:
        if OPTIONS.first:
            return
        if self._start is None:
            self._transport.write(data)
            if OPTIONS.reset:
                self._transport.abort()
            return
        self._start += data
        size = 5 + int.from_bytes(self._start[3:5], "big")
        if len(self._start) >= max(size, 5):
            self._transport.write(b"served" + self._start[size:])
            self._start = None

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()


async def serve() -> None:
    os.chdir(OPTIONS.directory)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind("new-socket")
    listening.listen(OPTIONS.backlog)
    # In one step, whether another backend was there or not.
    os.rename("new-socket", "tls-socket")
    server = await asyncio.get_running_loop().create_unix_server(
        Echo, sock=listening, backlog=OPTIONS.backlog
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("--backlog", type=int, default=1000)
parser.add_argument("--deaf", action="store_true")
parser.add_argument("--first", action="store_true")
parser.add_argument("--reset", action="store_true")
OPTIONS = parser.parse_args(namespace=argparse.Namespace())

if __name__ == "__main__":
    asyncio.run(serve())
