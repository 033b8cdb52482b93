"""Messages between the first process and a worker."""

import itertools
import os
import resource
from collections.abc import Callable, Iterator

import pytest

from sniproxy.process.channel import Channel, Message
from tests.covered import untraced
from tests.processes import in_child


def test_messages_keep_apart() -> None:
    one, other = Channel.pair()
    assert one.send("stop", reason="SIGHUP", open=3)
    assert one.send("exit")
    assert taken(other) == ("stop", {"reason": "SIGHUP", "open": 3})
    assert taken(other) == ("exit", {})
    with pytest.raises(BlockingIOError):
        other.receive()
    one.close()
    assert other.receive() is None
    assert not other.send("totals")
    other.close()


def taken(channel: Channel) -> Message | None:
    """Give the next message, which is done then."""
    message = channel.receive()
    channel.done()
    return message


def test_a_message_stays_until_it_is_done() -> None:
    """Who could not act on it, for want of memory, is given it again."""
    one, other = Channel.pair()
    assert one.send("stop")
    assert one.send("exit")
    assert other.receive() == other.receive() == ("stop", {})
    other.done()
    assert taken(other) == ("exit", {})
    one.close()
    assert other.receive() is None
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
        assert taken(other) == ("refused", {"number": number})
    assert one.send("refused", number=sent)
    assert taken(other) == ("refused", {"number": sent})
    one.close()
    other.close()


def test_the_end_is_heard_behind_a_full_channel() -> None:
    one, other = Channel.pair()
    sent = fill(one)
    one.end()
    for number in range(sent):
        assert taken(other) == ("refused", {"number": number})
    assert other.receive() is None
    # The other way it still serves.
    assert other.send("exit", accepted=1)
    assert taken(one) == ("exit", {"accepted": 1})
    one.close()
    other.close()


def test_a_descriptor_travels_with_its_message() -> None:
    one, other = Channel.pair()
    reader, writer = os.pipe()
    one.send_descriptor("parcel", writer, count=7)
    os.close(writer)
    assert other.receive() == ("parcel", {"count": 7})
    # No program that is run in between may have it.
    assert not os.get_inheritable(other.descriptor)
    os.write(other.descriptor, b"x")
    other.done()
    assert os.read(reader, 10) == b"x"
    assert os.read(reader, 10) == b""
    os.close(reader)
    one.close()
    other.close()


def failing(act: Callable[[], object]) -> Iterator[type[BaseException]]:
    """Act with one allocation failing, each in its turn; give the kind of what it has raised."""
    memory = pytest.importorskip(
        "_testcapi", reason="not applicable: this interpreter was built without _testcapi"
    )
    passed = number = 0
    while passed < 3:
        number += 1
        raised: type[BaseException] | None = None
        with untraced():
            memory.set_nomemory(number, number + 1)
            try:
                act()
            except BaseException as error:
                raised = type(error)
            finally:
                memory.remove_mem_hooks()
        passed = 0 if raised else passed + 1
        if raised is not None:
            yield raised


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_pair_for_which_memory_fails_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    for raised in failing(Channel.pair):
        assert raised is MemoryError
        assert os.listdir("/proc/self/fd") == before


def test_a_message_for_which_memory_fails_is_not_called_unfit() -> None:
    """Only after MemoryError it is sent once more."""
    one, other = Channel.pair()
    for raised in failing(lambda: one.send("connections_closed", count=7, reason="out_of_time")):
        assert raised is MemoryError
    one.close()
    other.close()


def test_a_descriptor_that_nobody_takes_is_the_senders_still() -> None:
    one, other = Channel.pair()
    fill(one)
    with pytest.raises(BlockingIOError):
        one.send_descriptor("parcel", one.fileno(), count=1)
    other.close()
    with pytest.raises(OSError, match="reset"):
        one.send_descriptor("parcel", one.fileno(), count=1)
    one.close()


def test_a_descriptor_that_does_not_fit_is_missed() -> None:
    def work() -> None:
        one, other = Channel.pair()
        one.send_descriptor("parcel", 0, count=7)
        one.send("exit")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (other.fileno(), limits[1]))
        assert taken(other) == ("parcel", {"count": 7})
        assert other.descriptor == -1
        assert taken(other) == ("exit", {})

    in_child(work)


def test_a_message_for_which_memory_fails_is_still_there() -> None:
    one, other = Channel.pair()
    assert one.send("stop", reason="SIGTERM")
    for raised in failing(other.receive):
        assert raised is MemoryError
        assert taken(other) == ("stop", {"reason": "SIGTERM"})
        assert one.send("stop", reason="SIGTERM")
    one.close()
    other.close()


def test_what_was_said_before_a_reset_is_heard() -> None:
    """Who leaves with a message of ours unread has not taken back what it said."""
    one, other = Channel.pair()
    assert one.send("look")
    assert other.send("parcel", count=7)
    assert other.send("exit")
    other.close()
    assert taken(one) == ("parcel", {"count": 7})
    assert taken(one) == ("exit", {})
    assert one.receive() is None
    one.close()
