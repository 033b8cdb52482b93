"""ClientHellos for the tests, built from the RFCs' structs, independently of the parser."""

import struct


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack("!HH", kind, len(data)) + data


def server_name(*entries: tuple[int, bytes]) -> bytes:
    """Build a server_name extension of entries (name type, name)."""
    names = b"".join(struct.pack("!BH", kind, len(name)) + name for kind, name in entries)
    return extension(0, struct.pack("!H", len(names)) + names)


def message(extensions: bytes | None, *, session: bytes = bytes(32), ciphers: int = 16) -> bytes:
    """Build a ClientHello handshake message; None leaves the extensions block out."""
    body = b"\3\3" + bytes(range(32))
    body += bytes([len(session)]) + session
    body += struct.pack("!H", 2 * ciphers) + b"\x13\x01" * ciphers
    body += b"\1\0"
    if extensions is not None:
        body += struct.pack("!H", len(extensions)) + extensions
    return b"\1" + len(body).to_bytes(3, "big") + body


def records(handshake: bytes, size: int = 2**14) -> bytes:
    """Cut a handshake message into records of ``size`` bytes."""
    return b"".join(
        b"\x16\3\1" + struct.pack("!H", len(part)) + part
        for part in (handshake[at : at + size] for at in range(0, len(handshake), size))
    )


def hello(name: str, *, record: int = 2**14, padding: int = 0) -> bytes:
    """Build the records of a hello for ``name`` with ``padding`` bytes of other extensions."""
    fill = b""
    while padding > 0:
        part = min(padding, 60_000)
        fill += extension(21, bytes(part))
        padding -= part
    return records(message(fill + server_name((0, name.encode("latin-1")))), record)
