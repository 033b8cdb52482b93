"""The ClientHello: bytes, in any cut, to the host name that the client asks for.

Two layers, as in RFC 8446: the record layer (``feed``) takes the fragments out of their records,
the handshake layer (``_server_name``) reads the message in the order of its struct and stops at
the first host name. The handshake layer is a generator that waits wherever a byte is missing, so
that each byte is looked at once, however the input is cut.

A parser has one of three outcomes: needs more (None), a host name, or a ``Refusal``. Every limit
on an unfinished hello but its time is set here.
"""

from collections.abc import Generator
from struct import Struct

from sniproxy.parser.alert import Alert, Refusal
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
_TWO_UINT16 = Struct("!HH").unpack_from


class ClientHelloParser:
    """Find the host name of one connection's first flight."""

    __slots__ = ("_fed", "_fragment_left", "_header", "_message", "_outcome")

    def __init__(self) -> None:
        self._fed = 0
        self._fragment_left = 0
        self._header = b""
        self._message = bytearray()
        self._outcome = _server_name(self._message)

    def feed(self, data: bytes | memoryview) -> str | None:
        """Take the next bytes; give the canonical host name, or None while more are needed.

        Raises ``Refusal``. After an outcome nothing more may be fed.
        """
        position, size = 0, len(data)
        while position < size:
            missing = self._fragment_left
            if not missing:
                header = (
                    self._header + data[position : position + _RECORD_HEADER - len(self._header)]
                )
                position += len(header) - len(self._header)
                missing = _fragment_length(header)
                if not missing:
                    self._header = header
                    break
                self._header = b""
            fragment = data[position : position + missing]
            position += len(fragment)
            self._fragment_left = missing - len(fragment)
            self._message += fragment
            try:
                next(self._outcome)
            except StopIteration as decided:
                host: str = decided.value
                return host
        self._fed += size
        if self._fed > MAX_WIRE_BYTES:
            raise Refusal(Alert.DECODE_ERROR, "hello_too_long")
        return None

    def finish(self) -> Refusal:
        """Say why the stream must not end here."""
        reason = "end_of_stream_in_hello" if self._fed else "no_hello"
        return Refusal(Alert.DECODE_ERROR, reason)


def _fragment_length(header: bytes) -> int:
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


def _server_name(message: bytearray) -> Generator[None, None, str]:
    """Read Handshake and ClientHello (RFC 8446 sections 4 and 4.1.2) up to the first host name.

    ``message`` grows between the steps: ``arrived`` is its length, ``end`` where what is being
    read ends, ``position`` how far it has been read. Raises ``Refusal``.

    Departure: the lower and upper bounds of the vectors (an odd cipher_suites, a session_id of
    more than 32 bytes) are the backend's to judge; we ask only that each fits what encloses it.
    """
    arrived = len(message)
    # HandshakeType msg_type; uint24 length;
    while arrived < 1:
        yield
        arrived = len(message)
    if message[0] != _CLIENT_HELLO:
        raise Refusal(Alert.UNEXPECTED_MESSAGE, "not_a_client_hello")
    while arrived < 4:
        yield
        arrived = len(message)
    end = 4 + (message[1] << 16 | message[2] << 8 | message[3])

    # ProtocolVersion legacy_version; Random random; opaque legacy_session_id<0..32>;
    position = 38
    if position + 1 > end:
        raise _misfit("random")
    while arrived <= position:
        yield
        arrived = len(message)
    position += 1 + message[position]

    # CipherSuite cipher_suites<2..2^16-2>;
    if position + 2 > end:
        raise _misfit("session_id")
    while arrived < position + 2:
        yield
        arrived = len(message)
    position += 2 + (message[position] << 8 | message[position + 1])

    # opaque legacy_compression_methods<1..2^8-1>;
    if position + 1 > end:
        raise _misfit("cipher_suites")
    while arrived <= position:
        yield
        arrived = len(message)
    position += 1 + message[position]

    # Extension extensions<8..2^16-1>; "servers will need to [...] check whether there is a
    # trailing extensions field" (RFC 8446 section 4.1.2).
    if position > end:
        raise _misfit("compression_methods")
    if position == end:
        raise Refusal(Alert.UNRECOGNIZED_NAME, "no_extensions")
    if position + 2 > end:
        raise _misfit("extensions")
    while arrived < position + 2:
        yield
        arrived = len(message)
    # The block "must end exactly where the hello ends": nothing follows it in the struct.
    if position + 2 + (message[position] << 8 | message[position + 1]) != end:
        raise _misfit("extensions")
    position += 2

    # ExtensionType extension_type; opaque extension_data<0..2^16-1>;
    while True:
        start = position + 4
        if start > end:
            if position == end:
                raise Refusal(Alert.UNRECOGNIZED_NAME, "no_server_name")
            raise _misfit("extension")
        while arrived < start:
            yield
            arrived = len(message)
        extension_type, length = _TWO_UINT16(message, position)
        position = start + length
        if position > end:
            raise _misfit("extension")
        if extension_type == _SERVER_NAME:
            break

    # ServerName server_name_list<1..2^16-1>; (RFC 6066 section 3)
    position, end = start, position
    if position + 2 > end:
        raise _misfit("server_name_list")
    while arrived < position + 2:
        yield
        arrived = len(message)
    if position + 2 + (message[position] << 8 | message[position + 1]) != end:
        raise _misfit("server_name_list")
    position += 2

    # NameType name_type; opaque HostName<1..2^16-1>; other types are skipped by their length:
    # "all future data structures associated with new NameTypes MUST begin with a 16-bit length".
    while True:
        if position == end:
            raise Refusal(Alert.UNRECOGNIZED_NAME, "no_host_name")
        if position + 3 > end:
            raise _misfit("server_name")
        while arrived < position + 3:
            yield
            arrived = len(message)
        name_type = message[position]
        length = message[position + 1] << 8 | message[position + 2]
        position += 3
        if position + length > end:
            raise _misfit("server_name")
        if name_type == _HOST_NAME:
            break
        position += length

    while arrived < position + length:
        yield
        arrived = len(message)
    host = canonical(bytes(message[position : position + length]))
    if host is None:
        raise Refusal(Alert.UNRECOGNIZED_NAME, "not_a_host_name")
    return host
