"""The inquiry: how a status socket is asked, and why there may be no answer.

One request a connection, by HTTP/1.0, so that an answer is a head, a length and bytes. It has
limits of size and time, which are set here, whoever is at the other end.
"""

import contextlib
import errno
import os
import re
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator

from sniproxy.tools.output import escaped
from sniproxy.tools.statement import Document, FormError, statement

SOCKET = "/run/sniproxy/status"
"""Where the unit ``sniproxy-status.socket`` listens."""

PATIENCE = 10.0
"""Seconds for one answer, from the first attempt to connect on."""

PAGE = 1000
"""Open connections in one answer: the most that the other end gives."""

LARGEST = 8 << 20
"""Bytes of an answer: several times what 4,096 hosts and a page of connections take."""

_PIECE = 1 << 18
_LONGEST_WORDS = 200

_BUSY = 0.05
"""Seconds until a Unix socket whose queue is full is tried again: no event tells of room."""

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})([^\r\n]*)")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r\n", re.IGNORECASE)
_CURSOR = re.compile(r"[\w.~-]{1,200}", re.ASCII)

ENABLE = (
    "systemctl enable sniproxy-status.socket",
    "systemctl restart sniproxy.service",
)
"""What makes the unit listen: ``enable --now`` does not, beside a service that runs."""

Wait = Callable[[socket.socket | None, int, float], None]
"""Waits until a socket has one of these events of poll(2), or for so many seconds at most."""


def patiently(waiting: socket.socket | None, events: int, seconds: float) -> None:
    """Wait, and do nothing else meanwhile."""
    poller = select.poll()
    if waiting is not None:
        poller.register(waiting, events)
    poller.poll(seconds * 1000)


class AddressError(ValueError):
    """What is neither a path nor an address; says why."""


class InquiryError(Exception):
    """There is no answer; says why."""


class Inquiry:
    """Questions to the status socket at ``where``, a path or HOST:PORT in numbers.

    ``wait`` is called wherever one must. Raises AddressError.
    """

    def __init__(self, where: str, wait: Wait) -> None:
        self._where = where
        self._wait = wait
        self._path = where.removeprefix("unix:")
        self._family = socket.AF_UNIX
        self._address: str | tuple[str, int] = self._path
        if ":" in self._path and "/" not in self._path:
            self._family, self._address = _ip_address(where)

    def pages(self, *, connections: bool) -> Iterator[Document]:
        """Ask for a statement; with ``connections`` for one after the other, each with some of
        them, until there are no more. Raises InquiryError."""
        path = f"/status.json?connections={PAGE}" if connections else "/status.json"
        after, cursor = "", None
        while True:
            try:
                document = statement(self._ask(path + after), connections=connections)
                before, cursor = cursor, document["next"] if connections else None
                if cursor is not None and (cursor == before or not _CURSOR.fullmatch(cursor)):
                    raise FormError("its next page is none")
            except FormError as error:
                raise self._error(f"what answers is no status.json: {error}") from None
            yield document
            if cursor is None:
                return
            after = f"&after={cursor}"

    def _ask(self, path: str) -> bytes:
        """Give the body of the answer. Raises InquiryError."""
        until = time.monotonic() + PATIENCE
        try:
            with socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
                self._connect(asking, until)
                # A connection that is new has room for it; who has closed it may have said why.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    asking.send(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                head, body = self._answer(asking, until)
        except OSError as error:
            raise self._error(self._reason(error)) from None
        status = _STATUS.match(head)
        if status is None:
            raise self._error("what answers does not speak HTTP")
        if status[1] != b"200":
            line = body.strip().partition(b"\n")[0].rstrip()
            words = (status[1] + status[2] + (line and b": " + line)).decode(
                "ascii", "backslashreplace"
            )
            raise self._error(f"it answers {escaped(words)[:_LONGEST_WORDS]}")
        if body.startswith(b"{") and not body.rstrip().endswith(b"}"):  # its proxy starts anew
            raise self._error("its answer ends too soon")
        return body

    def _connect(self, asking: socket.socket, until: float) -> None:
        while True:
            try:
                asking.connect(self._address)
                return
            except BlockingIOError as error:
                if error.errno == errno.EINPROGRESS:
                    break
                self._sleep(None, 0, until, _BUSY)
        self._sleep(asking, select.POLLOUT, until)
        failed = asking.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))

    def _answer(self, asking: socket.socket, until: float) -> tuple[bytes, bytes]:
        """Read an answer to its end; give its head and its body."""
        received = bytearray()
        end, size = -1, LARGEST
        while len(received) < size:
            self._sleep(asking, select.POLLIN, until)
            try:
                piece = asking.recv(_PIECE)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                break
            if not piece:
                break
            received += piece
            if not received.startswith(b"HTTP/1."[: len(received)]):
                return b"", b""
            if end < 0 and (end := received.find(b"\r\n\r\n", -len(piece) - 3)) >= 0:
                told = _LENGTH.search(received, 0, end + 2)
                size = min(end + 4 + int(told[1]), LARGEST) if told else LARGEST
        else:
            if size >= LARGEST:
                raise self._error(f"its answer has {LARGEST >> 20} MiB or more: it is no status")
        if not received:
            raise self._error("it closes the connection without an answer")
        if end < 0 or len(received) < size < LARGEST:
            raise self._error("its answer ends too soon")
        return bytes(received[:end]), bytes(received[end + 4 : size])

    def _sleep(
        self, asking: socket.socket | None, events: int, until: float, most: float = PATIENCE
    ) -> None:
        self._wait(asking, events, min(max(until - time.monotonic(), 0), most))
        if time.monotonic() >= until:
            raise self._error(f"it has not answered within {PATIENCE:.0f} seconds")

    def _error(self, reason: str) -> InquiryError:
        return InquiryError(f"{self._where!a}: {reason}")

    def _reason(self, error: OSError) -> str:
        """Say why nobody could be asked, and what to do about it."""
        hint = ""
        enable = f": {' && '.join(ENABLE)}" if self._path == SOCKET else ""
        if self._family != socket.AF_UNIX:
            if error.errno == errno.ECONNREFUSED:
                hint = "nobody listens there"
        elif error.errno == errno.ENOENT:
            hint = f"there is no such socket{enable}"
        elif error.errno == errno.ECONNREFUSED:
            is_file = os.path.isfile(self._path)
            hint = "it is no socket" if is_file else f"nobody listens there{enable}"
        elif error.errno in (errno.EACCES, errno.EPERM):
            hint = f"uid {os.geteuid()} may not connect{_who_may(self._path)}"
        reason = error.strerror or str(error)
        return f"{reason} ({hint})" if hint else reason


def _ip_address(where: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    match = _ADDRESS.fullmatch(where)
    try:
        if match and int(match[3]) <= 65535:
            family = socket.AF_INET6 if match[1] else socket.AF_INET
            socket.inet_pton(family, match[1] or match[2])
            return family, (match[1] or match[2], int(match[3]))
    except OSError:
        pass
    raise AddressError(
        f"{where!a}: expected a path, or numbers such as 127.0.0.1:8080 or [::1]:8080: names are "
        "not resolved"
    )


def _who_may(path: str) -> str:
    """Say which group may connect, where that can be seen.

    The group's name is read from the file: the C library would load plugins for it, which the
    static executable can't.
    """
    try:
        status = os.stat(path)
        name = group = str(status.st_gid)
        with open("/etc/group", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split(":")
                if words[2:3] == [group]:
                    name = escaped(words[0])
    except OSError:
        return ""
    return f": those in the group {name} may" if status.st_mode & stat.S_IWGRP else ""
