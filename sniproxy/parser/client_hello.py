"""The ClientHello: bytes, in any cut, to the host name that the client asks for.

Two layers, as in RFC 8446: the record layer (``feed``) takes the fragments out of their records,
the handshake layer (``_server_name``) reads the message in the order of its struct and stops at
the first host name. Where a byte is missing, the handshake layer says how many it needs, and goes
on from the last vector that it began when they have arrived; so a hello costs linear time, however
the input is cut. (A generator that waits at each missing byte read as well and cost a twentieth of
a whole connection more, for the exception that carries its value.)

A parser has one of three outcomes: needs more (None), a host name, or a ``Refusal``. Every limit
on an unfinished hello but its time is set here.
"""

from struct import Struct

from sniproxy.parser.alert import Alert, Nameless, Refusal
from sniproxy.parser.host_name import canonical

MAX_FRAGMENT = 2**14
"""Bytes of a record's fragment: "The length MUST NOT exceed 2^14 bytes" (RFC 8446 section 5.1)."""

MAX_WIRE_BYTES = 2**20
"""Bytes fed without an outcome. The largest hello whose lengths fit, in records of one byte each,
is decided before 790 kB; this guards the memory should another limit fail."""

_RECORD_HEADER = 5
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_APPLICATION_LAYER_PROTOCOL_NEGOTIATION = 16
_ACME_TLS = b"acme-tls/1"
_ONLY_ACME_TLS = b"\0\x0b\x0a" + _ACME_TLS
"""ProtocolName protocol_name_list<2..2^16-1>; (RFC 7301 section 3.1) with this one name."""

_TWO_UINT16 = Struct("!HH").unpack_from
_HEADERS = Struct("!BHHBBH").unpack_from
_FIRST_NAME = Struct("!HBH").unpack_from


class _TooShortError(Exception):
    """The message can't be read any further before it has ``needed`` bytes."""

    def __init__(self, needed: int) -> None:
        self.needed = needed


class ClientHelloParser:
    """Find the host name of one connection's first flight."""

    __slots__ = (
        "_end",
        "_fed",
        "_fragment_left",
        "_header",
        "_in_list",
        "_message",
        "_needed",
        "_position",
    )

    def __init__(self) -> None:
        # The record layer: bytes seen, bytes of the current fragment to come, a header's start.
        self._fed = 0
        self._fragment_left = 0
        self._header = b""
        # The handshake layer: what has arrived of the message, how many bytes of it are needed to
        # read on, and where: at an extension, or in the server name list, which ends at ``_end``.
        self._message = bytearray()
        self._needed = 1
        self._position = 0
        self._end = 0
        self._in_list = False

    def feed(self, data: bytes | memoryview) -> str | None:
        """Take the next bytes; give the canonical host name, or None while more are needed.

        Raises ``Refusal``. After an outcome nothing more may be fed.
        """
        position, size = 0, len(data)
        message = self._message
        while position < size:
            missing = self._fragment_left
            if not missing:
                begun = self._header
                header = data[position : position + _RECORD_HEADER - len(begun)]
                position += len(header)
                if begun:
                    header = begun + header
                missing = _fragment_length(header)
                if not missing:
                    self._header = bytes(header)
                    break
                self._header = b""
            fragment = data[position : position + missing]
            arrived = len(fragment)
            position += arrived
            self._fragment_left = missing - arrived
            message += fragment
            if len(message) >= self._needed:
                try:
                    return self._server_name()
                except _TooShortError as short:
                    self._needed = short.needed
        self._fed += size
        if self._fed > MAX_WIRE_BYTES:
            raise Refusal(Alert.DECODE_ERROR, "hello_too_long")
        return None

    def kept(self) -> int:
        """Count the bytes of memory of what it keeps of the hello: a bytearray that grows takes an
        eighth more than it holds."""
        return self._message.__sizeof__()

    def validates(self) -> bool | None:
        """Say whether the client offers the protocol "acme-tls/1" and no other: then it is a
        certificate authority that validates the host (RFC 8737 section 3). To be asked once the
        name is known; None where the answer has not arrived yet. What is malformed behind the
        name is the backend's to judge, and no such offer.
        """
        message = self._message
        arrived = len(message)
        whole = arrived >= _end(message)
        if whole and message.find(_ACME_TLS) < 0:
            return False
        position, end = _extensions(message)
        while position + 4 <= min(end, arrived):
            extension_type, length = _TWO_UINT16(message, position)
            start = position + 4
            position = start + length
            if extension_type == _APPLICATION_LAYER_PROTOCOL_NEGOTIATION and position <= arrived:
                return message[start:position] == _ONLY_ACME_TLS
        return False if whole else None

    def _server_name(self) -> str:
        """Read Handshake and ClientHello (RFC 8446 sections 4 and 4.1.2) up to the first host
        name. Raises ``Refusal``, and ``_TooShortError`` where they have not arrived so far."""
        message = self._message
        if not self._end:
            self._position, self._end = _extensions(message)
        if not self._in_list:
            self._find_list(message)
        return self._host_name(message)

    def _find_list(self, message: bytearray) -> None:
        """Go from extension to extension up to the server name list.

        ExtensionType extension_type; opaque extension_data<0..2^16-1>;
        """
        arrived, position, end = len(message), self._position, self._end
        while True:
            start = position + 4
            if start > end:
                if position == end:
                    raise Nameless("no_server_name")
                raise _misfit("extension")
            if arrived < start:
                self._position = position
                raise _TooShortError(start)
            extension_type, length = _TWO_UINT16(message, position)
            position = start + length
            if position > end:
                raise _misfit("extension")
            if extension_type == _SERVER_NAME:
                break
        # ServerName server_name_list<1..2^16-1>; (RFC 6066 section 3)
        if length < 2:
            raise _misfit("server_name_list")
        if arrived < start + 2:
            self._position = start - 4
            raise _TooShortError(start + 2)
        if 2 + (message[start] << 8 | message[start + 1]) != length:
            raise _misfit("server_name_list")
        self._position = start + 2
        self._end = position
        self._in_list = True

    def _host_name(self, message: bytearray) -> str:
        """Go from name to name up to the first host name.

        NameType name_type; opaque HostName<1..2^16-1>; other types are skipped by their length:
        "all future data structures associated with new NameTypes MUST begin with a 16-bit length".
        """
        arrived, position, end = len(message), self._position, self._end
        while True:
            start = position + 3
            if start > end:
                if position == end:
                    raise Nameless("no_host_name")
                raise _misfit("server_name")
            if arrived < start:
                self._position = position
                raise _TooShortError(start)
            past = start + (message[position + 1] << 8 | message[position + 2])
            if past > end:
                raise _misfit("server_name")
            if message[position] == _HOST_NAME:
                break
            position = past
        if arrived < past:
            self._position = position
            raise _TooShortError(past)
        name = bytes(message[start:past])
        host = canonical(name)
        if host is None:
            raise Refusal(Alert.UNRECOGNIZED_NAME, "not_a_host_name", name)
        return host


def _fragment_length(header: bytes | memoryview) -> int:
    """Check a record header of 1 to 5 bytes as far as it goes; 0 while the length is missing.

    The legacy_record_version "MUST be ignored for all purposes" (RFC 8446 section 5.1).
    """
    # "Handshake messages MUST NOT be interleaved with other record types" (section 5.1).
    if header[0] != _HANDSHAKE:
        raise Refusal(Alert.UNEXPECTED_MESSAGE, "not_a_handshake_record")
    if len(header) < _RECORD_HEADER:
        return 0
    length = header[3] << 8 | header[4]
    if length > MAX_FRAGMENT:
        raise Refusal(Alert.RECORD_OVERFLOW, "record_too_long")
    # "Implementations MUST NOT send zero-length fragments of Handshake types" (section 5.1).
    if length == 0:
        raise Refusal(Alert.DECODE_ERROR, "empty_record")
    return length


def _misfit(what: str) -> Refusal:
    """Refuse a vector whose length and what encloses it contradict each other."""
    return Refusal(Alert.DECODE_ERROR, f"{what}_does_not_fit")


def _extensions(message: bytearray) -> tuple[int, int]:
    """Read the message up to its extensions; give where they begin and end.

    Raises ``Refusal``, or ``_TooShortError``: then what came before is read again later on, once
    for each of the seven numbers and vectors at most.

    Departure: the lower and upper bounds of the vectors (an odd cipher_suites, a session_id of
    more than 32 bytes) are the backend's to judge; we ask only that each fits what encloses it.
    """
    arrived = len(message)
    # HandshakeType msg_type; uint24 length;
    if message[0] != _CLIENT_HELLO:
        raise Refusal(Alert.UNEXPECTED_MESSAGE, "not_a_client_hello")
    if arrived < 4:
        raise _TooShortError(4)
    end = _end(message)

    # ProtocolVersion legacy_version; Random random; opaque legacy_session_id<0..32>;
    position = 38
    if position + 1 > end:
        raise _misfit("random")
    if arrived <= position:
        raise _TooShortError(position + 1)
    position += 1 + message[position]

    # CipherSuite cipher_suites<2..2^16-2>;
    if position + 2 > end:
        raise _misfit("session_id")
    if arrived < position + 2:
        raise _TooShortError(position + 2)
    position += 2 + (message[position] << 8 | message[position + 1])

    # opaque legacy_compression_methods<1..2^8-1>;
    if position + 1 > end:
        raise _misfit("cipher_suites")
    if arrived <= position:
        raise _TooShortError(position + 1)
    position += 1 + message[position]

    # Extension extensions<8..2^16-1>; "servers will need to [...] check whether there is a
    # trailing extensions field" (RFC 8446 section 4.1.2).
    if position > end:
        raise _misfit("compression_methods")
    if position == end:
        raise Nameless("no_extensions")
    if position + 2 > end:
        raise _misfit("extensions")
    if arrived < position + 2:
        raise _TooShortError(position + 2)
    # The block "must end exactly where the hello ends": nothing follows it in the struct.
    if position + 2 + (message[position] << 8 | message[position + 1]) != end:
        raise _misfit("extensions")
    return position + 2, end


def usual_host_name(buffer: bytearray, size: int) -> str | None:
    """Read a hello as nearly all are: whole, in one record, all there at the first read, with the
    host name in front of its list, and no offer of "acme-tls/1". ``size`` bytes have arrived in a
    buffer of 128 KiB or more, whatever is behind them.

    Gives what ``ClientHelloParser`` would, or None: then that is to judge. It takes a quarter of
    the bytecodes.
    """
    content_type, _, fragment, message_type, high, low = _HEADERS(buffer)
    end = 9 + (high << 16 | low)
    if (
        content_type != _HANDSHAKE
        or message_type != _CLIENT_HELLO
        or fragment > MAX_FRAGMENT
        or not end <= 5 + fragment <= size
    ):
        return None
    # What does not fit leads behind the end, and so to nothing, since it only ever goes on.
    position = 44 + buffer[43]
    position += 2 + (buffer[position] << 8 | buffer[position + 1])
    position += 1 + buffer[position]
    if position + 2 + (buffer[position] << 8 | buffer[position + 1]) != end:
        return None
    position += 2
    extension_type = -1
    while extension_type != _SERVER_NAME:
        start = position + 4
        if start > end:
            return None
        extension_type, length = _TWO_UINT16(buffer, position)
        position = start + length
    listed, name_type, length = _FIRST_NAME(buffer, start)
    start += 5
    past = start + length
    if (
        past > position
        or position > end
        or start + listed != position + 3
        or name_type != _HOST_NAME
        or buffer.find(_ACME_TLS, 0, end) >= 0
    ):
        return None
    return canonical(bytes(buffer[start:past]))


class WholeHelloParser(ClientHelloParser):
    """Gives the host name only when all of the hello has arrived."""

    __slots__ = ()

    def _server_name(self) -> str:
        host = super()._server_name()
        end = _end(self._message)
        if len(self._message) < end:
            raise _TooShortError(end)
        return host


def _end(message: bytearray) -> int:
    """Say where a handshake message ends, by the uint24 length behind its type."""
    return 4 + (message[1] << 16 | message[2] << 8 | message[3])
