"""The words for how a connection was lost."""

import errno
import os
import select
import socket
import struct

import pytest

from sniproxy.dataplane.ending import CLIENT_LOST, lost, pending, words


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


def test_the_words_for_a_backend_that_can_not_be_connected_to() -> None:
    said = {
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"): "accept queue full",
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"): "Connection refused",
    }
    assert {error: words(error) for error in said} == said
    odd = OSError("AF_UNIX path too long")
    assert words(odd) is odd


def test_an_error_that_the_kernel_has_noted_is_taken_once() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as nobody,
        socket.socket(type=socket.SOCK_DGRAM) as one,
    ):
        nobody.bind(("127.0.0.1", 0))
        one.connect(nobody.getsockname())
        nobody.close()
        assert pending(one) == 0
        one.send(b"x")
        select.select([one], [], [], 20)
        assert (pending(one), pending(one)) == (errno.ECONNREFUSED, 0)


def test_a_shutdown_after_a_reset_is_a_reset() -> None:
    """Where the backend's end is passed on before the client's reset has been seen."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        inner, _ = listening.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with inner, pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)) as raised:
        inner.shutdown(socket.SHUT_WR)
    assert lost("client", raised.value.errno) == "reset_by_client"
