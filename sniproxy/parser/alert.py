"""TLS alerts, and the refusal that carries one.

A refusal is the only error of the parser and of the resolver. It holds the alert that the client
gets and the reason that the log counts, so that both arise in one place.
"""

import enum
import struct


class Alert(enum.IntEnum):
    """AlertDescription, RFC 8446 section 6 and RFC 6066 section 3: those that we send."""

    UNEXPECTED_MESSAGE = 10
    RECORD_OVERFLOW = 22
    DECODE_ERROR = 50
    INTERNAL_ERROR = 80
    USER_CANCELED = 90
    UNRECOGNIZED_NAME = 112


_CONTENT_TYPE_ALERT = 21
_LEGACY_RECORD_VERSION = 0x0303
_LEVEL_FATAL = 2
_ALERT_RECORD = struct.Struct("!BHHBB")


def alert_record(alert: Alert) -> bytes:
    """Encode one fatal alert as a TLSPlaintext record of seven bytes (RFC 8446 section 5.1)."""
    return _ALERT_RECORD.pack(_CONTENT_TYPE_ALERT, _LEGACY_RECORD_VERSION, 2, _LEVEL_FATAL, alert)


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """The connection can't be served.

    ``alert`` goes to the client, None to who is no TLS client; ``reason`` goes to the log: a few
    fixed words of ours, never the peer's text, so that refusals can be counted by it. ``name`` is
    what was asked for, where that is no host name: the peer's text.
    """

    def __init__(self, alert: Alert | None, reason: str, name: bytes = b"") -> None:
        super().__init__(alert, reason)
        self.alert = alert
        self.reason = reason
        self.name = name

    def __str__(self) -> str:
        return f"{self.alert.name.lower() if self.alert else 'no alert'}: {self.reason}"


class Nameless(Refusal):
    """The client names no host, which some host may be for."""

    def __init__(self, reason: str) -> None:
        super().__init__(Alert.UNRECOGNIZED_NAME, reason)
