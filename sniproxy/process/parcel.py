"""Parcels: connections on their way from a process that stops to the one that starts next.

A parcel is the receiving end of a pair of Unix sockets that keep messages apart, with the messages
already in its queue and the sending end closed. So whoever keeps connections for us, the service
manager or exec(2), keeps one descriptor for thousands, and whoever reads takes a message (its
states, their descriptors, a memory file of unsent bytes) as a whole or not at all.

What is taken may come from a process that was broken into: descriptors are what they should be, or
the message is lost. (``dataplane.state`` judges the bytes.)
"""

import array
import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Callable, Sequence

from sniproxy.dataplane.state import MOST, Carried, State, StateError, decode, descriptors, encode

NAME = "sniproxy-parcel"
"""What each parcel is called where it is kept (FDNAME=, sd_notify(3)), followed by ``.`` and the
number of connections in it."""

_NAMED = re.compile(rf"{NAME}\.([0-9]{{1,7}})")

MOST_DESCRIPTORS = 2 * MOST + 1

_SEND_BUFFER = 1 << 20
"""Bytes that may wait in a parcel. The kernel gives what net.core.wmem_max allows (212,992 by
default): more than 2,000 connections."""

_LARGEST_MESSAGE = 96 * 1024
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_NO_LINGER = bytes(8)  # struct linger, off
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def connections_in(name: str) -> int | None:
    """Read off a parcel's name how many connections it is said to hold; None for another name."""
    match = _NAMED.fullmatch(name)
    return None if match is None else int(match[1])


class Parcel:
    """A parcel: the socket to read from, and how many connections it is said to hold."""

    def __init__(self, socket: socket.socket, count: int) -> None:
        self.socket = socket
        self.count = count

    @property
    def name(self) -> str:
        return f"{NAME}.{self.count}"


class Packer:
    """Makes parcels, and has each given away as soon as it is full. What has not been put when
    ``put`` raises is still the caller's."""

    def __init__(self, give: Callable[[Parcel], object]) -> None:
        self._give = give
        self._begun: tuple[socket.socket, Parcel] | None = None

    def put(self, carried: Sequence[Carried]) -> None:
        """Put connections into a parcel: copies of their sockets, which stay the caller's. Raises
        OSError."""
        states = [one.state for one in carried]
        unsent = [one.unsent for one in carried if one.unsent]
        memory = _memory(unsent) if unsent else None
        try:
            numbers = [end.fileno() for one in carried for end in one.sockets]
            if memory is not None:
                numbers.append(memory)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))]
            message = encode(states)
            sender, parcel = self._begun or self._begin()
            try:
                sender.sendmsg([message], rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                # It is full.
                sender, parcel = self._begin()
                sender.sendmsg([message], rights, socket.MSG_DONTWAIT)
            parcel.count += len(states)
        finally:
            if memory is not None:
                os.close(memory)

    def close(self) -> None:
        """Give the last parcel away, closed: who has read it sees its end."""
        if self._begun is not None:
            (sender, parcel), self._begun = self._begun, None
            sender.close()
            with parcel.socket:
                if parcel.count:
                    self._give(parcel)

    def _begin(self) -> tuple[socket.socket, Parcel]:
        sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.close()
        self._begun = sender, Parcel(receiver, 0)
        return self._begun


class Message:
    """What a message held: connections, and how many were lost and why. What belonged to those has
    been closed."""

    def __init__(self, lost: int = 0, problem: str = "") -> None:
        self.connections: list[Carried] = []
        self.lost = lost
        self.problem = problem


def take(parcel: socket.socket, now: float) -> Message | None:
    """Take the next message, None where there is none left.

    There must be room for its descriptors (``next_needs``, at most ``MOST_DESCRIPTORS``): what does
    not fit is closed by the kernel (MSG_CTRUNC).
    """
    space = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
    try:
        # Not recv_fds, which forgets its flags: no other program may get these.
        message, ancillary, flags, _ = parcel.recvmsg(
            _LARGEST_MESSAGE, space, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        )
    except OSError:
        return None  # it is none of ours: its sender is still there, or it never had one
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    if not message and not numbers:
        return None
    try:
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise StateError("a message that did not fit")
        states = decode(message, now)
        if len(numbers) != descriptors(states):
            raise StateError(f"{len(numbers)} descriptors, and not {descriptors(states)}")
    except StateError as error:
        for number in numbers:
            _close(number)
        return Message(max(1, len(numbers) // 2), str(error))
    return _unpacked(states, list(numbers))


def next_needs(parcel: socket.socket, now: float) -> int:
    """Say how many descriptors the next message holds, without taking it; 0 where it is none."""
    try:
        message = parcel.recv(_LARGEST_MESSAGE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        return descriptors(decode(message, now))
    except (OSError, StateError):
        return 0


def _unpacked(states: list[State], numbers: list[int]) -> Message:
    """Give each state what is its own."""
    result = Message()
    memory = numbers.pop() if any(state.unsent for state in states) else None
    size = sum(state.unsent for state in states)
    offset = 0
    for state in states:
        mine, numbers = numbers[: state.descriptors], numbers[state.descriptors :]
        try:
            start, offset = offset, offset + state.unsent
            unsent = _read(memory, size, start, state.unsent) if state.unsent else b""
            _check(mine)
        except StateError as error:
            result.lost += 1
            result.problem = str(error)
            for number in mine:
                _close(number)
            continue
        sockets = [socket.SocketType(fileno=number) for number in mine]
        result.connections.append(Carried(state, sockets, unsent))
    if memory is not None:
        _close(memory)
    return result


def _check(numbers: Sequence[int]) -> None:
    """See that these are a client's connected socket, and its backend's. Raises StateError."""
    for place, number in enumerate(numbers):
        try:
            one = socket.SocketType(fileno=number)
        except OSError as error:
            raise StateError(f"a descriptor that is no socket: {error.strerror}") from None
        try:
            if one.type != socket.SOCK_STREAM or one.family not in _FAMILIES:
                raise StateError("a socket that is none of a stream")
            if place and one.family != socket.AF_UNIX:
                raise StateError("a backend that is no Unix socket")
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise StateError("a socket that listens")
            # Else to close it, or to splice, might take as long as whoever set it likes.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            os.set_blocking(number, False)
        except OSError as error:
            raise StateError(f"a socket that answers: {error.strerror}") from None
        finally:
            one.detach()


def _memory(unsent: Sequence[bytes]) -> int:
    """Make a memory file that nobody can change any more."""
    memory = os.memfd_create("unsent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for one in unsent:
            view = memoryview(one)
            while view:
                view = view[os.write(memory, view) :]
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _read(memory: int | None, size: int, offset: int, length: int) -> bytes:
    """Read a piece of a memory file of ``size`` bytes. Raises StateError."""
    if memory is None:
        raise StateError("no memory file")
    try:
        # Only a memory file has seals; any other file might never answer.
        if fcntl.fcntl(memory, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise StateError("a memory file that may still change")
        if os.fstat(memory).st_size != size:
            raise StateError("a memory file of another size than the states say")
        return os.pread(memory, length, offset)
    except OSError as error:
        raise StateError(f"a memory file that is none: {error.strerror}") from None


def _close(number: int) -> None:
    """Close a descriptor of whatever kind, without waiting for what it may still hold."""
    with contextlib.suppress(OSError):
        one = socket.SocketType(fileno=number)
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        one.detach()
    with contextlib.suppress(OSError):
        os.close(number)
