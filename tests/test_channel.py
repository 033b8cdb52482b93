"""Messages between the first process and a worker."""

import pytest

from sniproxy.proxy.channel import Channel


def test_messages_keep_apart() -> None:
    one, other = Channel.pair()
    assert one.send("stop", reason="SIGHUP", open=3)
    assert one.send("exit")
    assert other.receive() == ("stop", {"reason": "SIGHUP", "open": 3})
    assert other.receive() == ("exit", {})
    with pytest.raises(BlockingIOError):
        other.receive()
    one.close()
    assert other.receive() is None
    assert not other.send("totals")
    other.close()


def test_a_full_channel_loses_a_message_and_nothing_else() -> None:
    one, other = Channel.pair()
    sent = 0
    while one.send("refused", number=sent):
        sent += 1
    for number in range(sent):
        assert other.receive() == ("refused", {"number": number})
    assert one.send("refused", number=sent)
    assert other.receive() == ("refused", {"number": sent})
    one.close()
    other.close()
