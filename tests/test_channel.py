"""Messages between the first process and a worker."""

import itertools

import pytest

from sniproxy.process.channel import Channel


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


def fill(channel: Channel) -> int:
    """Send numbers until the channel takes no more; give how many."""
    for sent in itertools.count():
        try:
            assert channel.send("refused", number=sent)
        except BlockingIOError:
            break
    return sent


def test_a_full_channel_loses_a_message_and_nothing_else() -> None:
    one, other = Channel.pair()
    sent = fill(one)
    for number in range(sent):
        assert other.receive() == ("refused", {"number": number})
    assert one.send("refused", number=sent)
    assert other.receive() == ("refused", {"number": sent})
    one.close()
    other.close()


def test_the_end_is_heard_behind_a_full_channel() -> None:
    one, other = Channel.pair()
    sent = fill(one)
    one.end()
    for number in range(sent):
        assert other.receive() == ("refused", {"number": number})
    assert other.receive() is None
    # The other way it still serves.
    assert other.send("exit", accepted=1)
    assert one.receive() == ("exit", {"accepted": 1})
    one.close()
    other.close()
