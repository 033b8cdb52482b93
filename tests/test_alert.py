"""Alerts as bytes, and the refusal that carries one."""

import pytest

from sniproxy.parser.alert import Alert, Refusal, alert_record


@pytest.mark.parametrize(
    ("alert", "number"),
    [
        (Alert.UNEXPECTED_MESSAGE, 10),
        (Alert.RECORD_OVERFLOW, 22),
        (Alert.DECODE_ERROR, 50),
        (Alert.INTERNAL_ERROR, 80),
        (Alert.USER_CANCELED, 90),
        (Alert.UNRECOGNIZED_NAME, 112),
    ],
)
def test_seven_bytes(alert: Alert, number: int) -> None:
    assert alert_record(alert) == bytes.fromhex("15 0303 0002 02") + bytes([number])


def test_every_alert_is_tested_above() -> None:
    assert len(Alert) == 6


def test_a_refusal_says_what_the_log_says() -> None:
    refused = Refusal(Alert.DECODE_ERROR, "empty_record")
    assert (refused.alert, refused.reason) == (Alert.DECODE_ERROR, "empty_record")
    assert str(refused) == "decode_error: empty_record"
