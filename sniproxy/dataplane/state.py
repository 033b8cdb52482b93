"""The state of connections on their way from one process to the next: a format, and its parser.

A message holds the states of up to ``MOST`` connections. Beside it travel their descriptors, in the
order of the states, and behind them, only where there are bytes that were read and not yet passed
on, one memory file that holds all of those in the same order. Sans I/O: bytes and numbers in,
values out.

The process that wrote a message may have been broken into, since a restart is how a hole is closed.
So every field is checked, and a message that contradicts itself anywhere is none at all.

The format is described in docs/explanation/handover.md. A change of it takes a new ``FORMAT``; the
one of the release before stays readable.
"""

import enum
import math
import re
import struct
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, SocketType, inet_ntop, inet_pton
from typing import NamedTuple

from sniproxy.parser.host_name import MAX_LENGTH, canonical
from sniproxy.parser.proxy_header import SocketAddress

FORMAT = 3
"""The number that every message begins with."""

MOST = 126
"""Connections of a message: two descriptors each and the memory file are 253 (SCM_MAX_FD of the
kernel's include/net/scm.h, unix(7))."""

MAX_UNSENT = 3 * 1024 * 1024
"""Bytes of one direction: a whole hello with its records and a PROXY header, or a full pipe."""

_HEADER = struct.Struct("!HH")
_KIND = struct.Struct("!B")
_TIMES = struct.Struct("!dd")
_DIRECTION = struct.Struct("!QBI")
_RECEIVED = struct.Struct("!I")
_LEFT = struct.Struct("!q")
_PORT = struct.Struct("!H")
_IPV6 = struct.Struct("!II")
_NO_ADDRESS, _IPV4_ADDRESS, _IPV6_ADDRESS = 0, 4, 6
_UNLIMITED = -1
_LAST_WITHOUT_DIRECTORIES = 2
_DIRECTORY = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # of both flavours, and nowhere else
_SEVERED = 2


class Kind(enum.IntEnum):
    """What a connection is doing."""

    RELAYED = 1
    ARRIVING = 2
    LEAVING = 3
    ANNOUNCED = 4


READABLE = {1: Kind.LEAVING, 2: Kind.ANNOUNCED, FORMAT: Kind.ANNOUNCED}
"""The formats that this release reads, and the last of the kinds that each has."""


class StateError(ValueError):
    """What is no message of a format that we read; says what is wrong with it."""


class Direction(NamedTuple):
    """One direction of a relayed connection: bytes that the receiver has taken, how far it is
    (``relay.FLOWING``, ``FINISHED`` or ``SEVERED``), and bytes that it has not taken yet."""

    moved: int
    ended: int
    unsent: int


class Relayed(NamedTuple):
    """A connection with its backend. The times are of the monotonic clock, 0 where nobody has
    noted them; ``host``, which was asked for, and the ``directory`` that serves it are empty
    likewise."""

    address: SocketAddress
    host: str
    accepted_at: float
    decided_at: float
    up: Direction
    down: Direction
    directory: str = ""

    @property
    def descriptors(self) -> int:
        return 2

    @property
    def unsent(self) -> int:
        return self.up.unsent + self.down.unsent


class Arriving(NamedTuple):
    """A client whose hello is not complete, or that waits for its backend; ``unsent`` bytes of it
    have been read, a PROXY header in front where it is to be ``announced`` by one."""

    address: SocketAddress
    accepted_at: float
    unsent: int
    announced: bool = False

    @property
    def descriptors(self) -> int:
        return 1


class Leaving(NamedTuple):
    """A client that has been sent its last byte; at most ``left`` bytes of it are still to be read,
    None for any number."""

    left: int | None

    @property
    def descriptors(self) -> int:
        return 1

    @property
    def unsent(self) -> int:
        return 0


State = Relayed | Arriving | Leaving


class Carried(NamedTuple):
    """A connection on its way: its state, its sockets (the client's, the backend's), and the bytes
    that it holds unsent, those from the client first."""

    state: State
    sockets: list[SocketType]
    unsent: bytes


def encode(states: Sequence[State]) -> bytes:
    """Write a message of at most ``MOST`` states."""
    parts = [_HEADER.pack(FORMAT, len(states))]
    for state in states:
        if isinstance(state, Relayed):
            parts += [_KIND.pack(Kind.RELAYED), _address(state.address), *_name(state.host)]
            parts.append(_TIMES.pack(state.accepted_at, state.decided_at))
            parts += [
                _DIRECTION.pack(one.moved, one.ended, one.unsent) for one in (state.up, state.down)
            ]
            parts += _name(state.directory)
        elif isinstance(state, Arriving):
            kind = Kind.ANNOUNCED if state.announced else Kind.ARRIVING
            parts += [_KIND.pack(kind), _address(state.address)]
            parts += [_TIMES.pack(state.accepted_at, 0.0), _RECEIVED.pack(state.unsent)]
        else:
            left = _UNLIMITED if state.left is None else state.left
            parts += [_KIND.pack(Kind.LEAVING), _LEFT.pack(left)]
    return b"".join(parts)


def decode(message: bytes, now: float) -> list[State]:
    """Read a message at the time ``now`` of the monotonic clock. Raises ``StateError``."""
    return _Reader(message, now).states()


def formats_line() -> str:
    """Say which formats this release reads, for the process that would hand over to it."""
    return f"hand-over formats: {' '.join(map(str, sorted(READABLE)))}"


def reads_ours(text: str) -> bool:
    """Say whether one of these lines is a ``formats_line`` with the format that we write."""
    start, _, _ = formats_line().partition(":")
    lines = (line.partition(":") for line in text.splitlines())
    return any(name == start and str(FORMAT) in rest.split() for name, _, rest in lines)


def descriptors(states: Sequence[State]) -> int:
    """Count the descriptors that must have come with these states."""
    return sum(state.descriptors for state in states) + any(state.unsent for state in states)


def _name(name: str) -> list[bytes]:
    return [_KIND.pack(len(name)), name.encode("ascii")]


def _address(address: SocketAddress) -> bytes:
    if not isinstance(address, tuple):
        return _KIND.pack(_NO_ADDRESS)
    host, port = address[0], _PORT.pack(address[1])
    if ":" not in host:
        return _KIND.pack(_IPV4_ADDRESS) + inet_pton(AF_INET, host) + port
    host = host.partition("%")[0]
    rest = address[2:] if len(address) == 4 else (0, 0)
    return _KIND.pack(_IPV6_ADDRESS) + inet_pton(AF_INET6, host) + port + _IPV6.pack(*rest)


class _Reader:
    """Takes a message apart, front to back."""

    def __init__(self, message: bytes, now: float) -> None:
        self._message = message
        self._now = now
        self._position = 0
        self._format = FORMAT

    def states(self) -> list[State]:
        number, count = self._fields(_HEADER)
        if number not in READABLE:
            raise StateError(f"format {number}, and not one of {sorted(READABLE)}")
        self._format = number
        if not 1 <= count <= MOST:
            raise StateError(f"{count} connections, and not 1 to {MOST}")
        states = [self._state() for _ in range(count)]
        if self._position != len(self._message):
            raise StateError("bytes behind the last state")
        return states

    def _state(self) -> State:
        (kind,) = self._fields(_KIND)
        if kind == Kind.RELAYED:
            return self._relayed()
        if kind in (Kind.ARRIVING, Kind.ANNOUNCED) and kind <= READABLE[self._format]:
            address = self._address()
            accepted_at, nothing = self._fields(_TIMES)
            (size,) = self._fields(_RECEIVED)
            if nothing != 0:
                raise StateError("an undecided hello with a time of its decision")
            announced = kind == Kind.ANNOUNCED
            return Arriving(address, self._time(accepted_at), _bounded(size), announced)
        if kind == Kind.LEAVING:
            (left,) = self._fields(_LEFT)
            if left < _UNLIMITED:
                raise StateError(f"{left} bytes left to be read")
            return Leaving(None if left == _UNLIMITED else left)
        raise StateError(f"a connection of kind {kind}")

    def _relayed(self) -> Relayed:
        address = self._address()
        name = self._name()
        host = canonical(name) if name else ""
        if host is None or host.encode("ascii") != name:
            raise StateError("a host name that is none")
        accepted_at, decided_at = map(self._time, self._fields(_TIMES))
        if decided_at and decided_at < accepted_at:
            raise StateError("a hello that was complete before the client was accepted")
        up, down = self._direction(), self._direction()
        if up.ended and down.ended:
            raise StateError("a connection that has ended")
        if down.ended == _SEVERED:
            raise StateError("a connection whose client has gone")
        directory = self._name() if self._format > _LAST_WITHOUT_DIRECTORIES else b""
        if directory and not _DIRECTORY.fullmatch(directory):
            raise StateError("a directory that is none")
        return Relayed(address, host, accepted_at, decided_at, up, down, directory.decode("ascii"))

    def _name(self) -> bytes:
        (length,) = self._fields(_KIND)
        if length > MAX_LENGTH:
            raise StateError(f"a host name of {length} bytes")
        return self._take(length)

    def _direction(self) -> Direction:
        moved, ended, unsent = self._fields(_DIRECTION)
        if ended > _SEVERED:
            raise StateError(f"a direction in state {ended}")
        if ended and unsent:
            raise StateError("unsent bytes in a direction that has ended")
        return Direction(moved, ended, _bounded(unsent))

    def _address(self) -> SocketAddress:
        (family,) = self._fields(_KIND)
        if family == _NO_ADDRESS:
            return ""
        if family == _IPV4_ADDRESS:
            host = inet_ntop(AF_INET, self._take(4))
            return host, *self._fields(_PORT)
        if family == _IPV6_ADDRESS:
            host = inet_ntop(AF_INET6, self._take(16))
            (port,) = self._fields(_PORT)
            flow, scope = self._fields(_IPV6)
            return host, port, flow, scope
        raise StateError(f"an address of family {family}")

    def _time(self, seconds: float) -> float:
        if not math.isfinite(seconds) or not 0 <= seconds <= self._now:
            raise StateError("a time that has not been yet")
        return seconds

    def _fields(self, layout: struct.Struct) -> tuple:  # type: ignore[type-arg]
        return layout.unpack(self._take(layout.size))

    def _take(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._position > len(self._message):
            raise StateError("a message that is cut short")
        return self._message[start : self._position]


def _bounded(size: int) -> int:
    if size > MAX_UNSENT:
        raise StateError(f"{size} unsent bytes of one direction: at most {MAX_UNSENT} can be")
    return size
