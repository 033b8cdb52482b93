"""The words for how a connection was lost."""

import errno

import pytest

from sniproxy.dataplane.ending import CLIENT_LOST, lost


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "reset_by_client"),
        (errno.ECONNRESET, "reset_by_client"),
        (errno.EPIPE, "reset_by_client"),
        (errno.ETIMEDOUT, "client_timed_out"),
        (errno.EHOSTUNREACH, "client_unreachable"),
        (errno.ENETUNREACH, "client_unreachable"),
        (errno.EIO, "client_failed"),
    ],
)
def test_what_is_no_reset_is_not_called_one(error: int | None, how: str) -> None:
    assert lost("client", error) == how
    assert how in CLIENT_LOST


def test_whatever_the_error_the_words_are_few() -> None:
    assert len(CLIENT_LOST) == 4
    assert lost("backend") == lost("backend", errno.ECONNRESET) == "reset_by_backend"
    assert not any("backend" in how for how in CLIENT_LOST)
