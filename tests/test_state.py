"""The format in which connections travel: what is written is read, and nothing else is."""

import math
import socket
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sniproxy.dataplane.relay import FINISHED, FLOWING, SEVERED
from sniproxy.dataplane.state import (
    FORMAT,
    MAX_UNSENT,
    MOST,
    Arriving,
    Direction,
    Leaving,
    Relayed,
    State,
    StateError,
    decode,
    descriptors,
    encode,
    formats_line,
    reads_ours,
)
from sniproxy.parser.host_name import MAX_LENGTH

NOW = 1000.0

times = st.floats(0, NOW)
sizes = st.integers(0, MAX_UNSENT)
addresses = st.one_of(
    st.just(""),
    st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535)),
    st.tuples(
        st.ip_addresses(v=6).map(lambda one: socket.inet_ntop(socket.AF_INET6, one.packed)),
        st.integers(0, 65535),
        st.integers(0, 2**20 - 1),
        st.integers(0, 2**32 - 1),
    ),
)
hosts = st.one_of(
    st.just(""),
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}(\.[a-z0-9-]{0,0}[a-z0-9]){0,3}", fullmatch=True),
    st.just("a" * MAX_LENGTH),
)
flowing = st.builds(Direction, st.integers(0, 2**64 - 1), st.just(FLOWING), sizes)


def ended(*how: int) -> st.SearchStrategy[Direction]:
    return st.builds(Direction, st.integers(0, 2**64 - 1), st.sampled_from(how), st.just(0))


directions = st.one_of(
    st.tuples(flowing, flowing),
    st.tuples(ended(FINISHED, SEVERED), flowing),
    st.tuples(flowing, ended(FINISHED)),
)


directories = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,253}", fullmatch=True) | st.just("")


@st.composite
def relayed(draw: st.DrawFn) -> Relayed:
    accepted, decided = sorted((draw(times), draw(times)))
    decided = draw(st.sampled_from([0.0, decided]))
    up, down = draw(directions)
    return Relayed(draw(addresses), draw(hosts), accepted, decided, up, down, draw(directories))


arriving = st.builds(Arriving, addresses, times, sizes, st.booleans())
leaving = st.builds(Leaving, st.none() | st.integers(0, 2**63 - 1))
states = st.lists(st.one_of(relayed(), arriving, leaving), min_size=1, max_size=12)

IDLE = Direction(0, FLOWING, 0)
ALL: list[State] = [
    Relayed(("192.0.2.1", 443), "a.example", 1.0, 2.0, Direction(7, FLOWING, 5), IDLE),
    Relayed(("2001:db8::1", 443, 3, 4), "", 0.0, 0.0, IDLE, Direction(7, FINISHED, 0)),
    Arriving(("192.0.2.2", 1), 3.0, 9),
    Arriving(("192.0.2.3", 1), 3.0, 9, announced=True),
    Leaving(None),
    Leaving(12),
]


@given(states)
@example(ALL)
@example([Leaving(0)] * MOST)
def test_what_is_written_is_read(them: list[State]) -> None:
    assert decode(encode(them), NOW) == them


@given(states)
def test_descriptors_are_counted(them: list[State]) -> None:
    sockets = sum(2 if isinstance(one, Relayed) else 1 for one in them)
    assert descriptors(them) == sockets + (1 if any(one.unsent for one in them) else 0)
    assert descriptors([*them] * (MOST // len(them))) <= 2 * MOST + 1


def test_cut_short_anywhere_it_is_none() -> None:
    message = encode(ALL)
    for size in range(len(message)):
        with pytest.raises(StateError, match=r"cut short|connections"):
            decode(message[:size], NOW)
    with pytest.raises(StateError, match="behind the last"):
        decode(message + b"\0", NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_states_or_none(data: bytes) -> None:
    for message in (data, struct.pack("!HH", FORMAT, 1) + data):
        try:
            them = decode(message, NOW)
        except StateError:
            continue
        assert decode(encode(them), NOW) == them


@given(st.integers(0, len(encode(ALL)) - 1), st.integers(0, 255))
def test_any_byte_changed(place: int, value: int) -> None:
    message = bytearray(encode(ALL))
    message[place] = value
    try:
        them = decode(bytes(message), NOW)
    except StateError:
        return
    assert len(them) == len(ALL)


def test_every_message_fits_where_it_is_read_into() -> None:
    name = "a" * MAX_LENGTH
    widest = Relayed(("2001:db8::1", 1, 2, 3), name, 1.0, 2.0, IDLE, IDLE, name)
    assert len(encode([widest] * MOST)) < 96 * 1024


def _relayed(
    *,
    family: bytes = b"\0",
    length: int | None = None,
    host: bytes = b"a",
    accepted: float = 1.0,
    decided: float = 2.0,
    up: tuple[int, int, int] = (0, 0, 0),
    down: tuple[int, int, int] = (0, 0, 0),
    directory: bytes | None = b"",
    number: int = FORMAT,
) -> bytes:
    size = len(host) if length is None else length
    return (
        struct.pack("!HHB", number, 1, 1)
        + family
        + bytes([size])
        + host
        + struct.pack("!dd", accepted, decided)
        + struct.pack("!QBI", *up)
        + struct.pack("!QBI", *down)
        + (b"" if directory is None else bytes([len(directory)]) + directory)
    )


def _arriving(accepted: float, decided: float, size: int) -> bytes:
    return struct.pack("!HHBBddI", FORMAT, 1, 2, 0, accepted, decided, size)


def test_the_hand_written_ones_are_right_where_nothing_is_wrong() -> None:
    assert decode(_relayed(), NOW) == [Relayed("", "a", 1.0, 2.0, IDLE, IDLE)]
    assert decode(_arriving(1.0, 0.0, 4), NOW) == [Arriving("", 1.0, 4)]
    for name in ("a.example", "_.a.example", "_default", "sw-" + 40 * "_"):
        (state,) = decode(_relayed(directory=name.encode()), NOW)
        assert isinstance(state, Relayed)
        assert state.directory == name


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"", "cut short"),
        (struct.pack("!HH", 0, 1), "format 0"),
        (struct.pack("!HH", FORMAT + 1, 1), f"format {FORMAT + 1}"),
        (struct.pack("!HH", 65535, 1), "format 65535"),
        (struct.pack("!HH", FORMAT, 0), "0 connections"),
        (struct.pack("!HH", FORMAT, MOST + 1), f"{MOST + 1} connections"),
        (struct.pack("!HHB", FORMAT, 1, 0), "kind 0"),
        (struct.pack("!HHB", FORMAT, 1, 5), "kind 5"),
        (struct.pack("!HHBBddI", 1, 1, 4, 0, 1.0, 0.0, 0), "kind 4"),
        (struct.pack("!HHB", FORMAT, 1, 255), "kind 255"),
        (_relayed(family=b"\1"), "family 1"),
        (_relayed(family=b"\5abcdef"), "family 5"),
        (_relayed(host=b"a" * (MAX_LENGTH + 1)), "bytes"),
        (_relayed(host=b".."), "none"),
        (_relayed(host=b"a/b"), "none"),
        (_relayed(host=b"A"), "none"),
        (_relayed(host=b"\xff"), "none"),
        (_relayed(host=b"a\0"), "none"),
        (_relayed(accepted=NOW + 1, decided=0.0), "has not been"),
        (_relayed(accepted=-1.0), "has not been"),
        (_relayed(accepted=math.nan), "has not been"),
        (_relayed(accepted=math.inf), "has not been"),
        (_relayed(decided=NOW + 1), "has not been"),
        (_relayed(decided=-1.0), "has not been"),
        (_relayed(decided=math.nan), "has not been"),
        (_relayed(accepted=3.0, decided=2.0), "before the client"),
        (_relayed(up=(0, 3, 0)), "state 3"),
        (_relayed(down=(0, 255, 0)), "state 255"),
        (_relayed(up=(0, 1, 1)), "ended"),
        (_relayed(down=(0, 1, 1)), "ended"),
        (_relayed(up=(0, 1, 0), down=(0, 1, 0)), "has ended"),
        (_relayed(up=(0, 2, 0), down=(0, 1, 0)), "has ended"),
        (_relayed(down=(0, 2, 0)), "client has gone"),
        (_relayed(up=(0, 0, MAX_UNSENT + 1)), "unsent"),
        (_relayed(down=(0, 0, 2**32 - 1)), "unsent"),
        (_arriving(NOW + 1, 0.0, 0), "has not been"),
        (_arriving(math.nan, 0.0, 0), "has not been"),
        (_arriving(1.0, 2.0, 0), "undecided"),
        (_arriving(1.0, math.nan, 0), "undecided"),
        (_arriving(1.0, 0.0, MAX_UNSENT + 1), "unsent"),
        (_relayed(directory=b".."), "a directory"),
        (_relayed(directory=b"a/b"), "a directory"),
        (_relayed(directory=b"a\n"), "a directory"),
        (_relayed(directory=b"\xff"), "a directory"),
        (struct.pack("!HHBq", FORMAT, 1, 3, -2), "-2 bytes left"),
    ],
)
def test_every_field_is_checked(message: bytes, problem: str) -> None:
    with pytest.raises(StateError, match=problem):
        decode(message, NOW)


@pytest.mark.parametrize("number", [1, 2])
def test_the_formats_of_releases_before_are_read(number: int) -> None:
    """They have no directories, and the first has nobody behind a balancer."""
    before = [one for one in ALL if isinstance(one, (Arriving, Leaving))]
    if number == 1:
        before = [one for one in before if not getattr(one, "announced", False)]
    assert decode(struct.pack("!H", number) + encode(before)[2:], NOW) == before
    message = _relayed(number=number, directory=None)
    assert decode(message, NOW) == [Relayed("", "a", 1.0, 2.0, IDLE, IDLE)]


def test_a_client_that_has_gone_has_no_address() -> None:
    for address in (None, "", b"\0x", "/run/client"):
        (state,) = decode(encode([Arriving(address, 1.0, 0)]), NOW)
        assert state == Arriving("", 1.0, 0)


def test_a_scope_is_no_part_of_an_address() -> None:
    (state,) = decode(encode([Arriving(("fe80::1%lo", 1, 0, 1), 1.0, 0)]), NOW)
    assert state == Arriving(("fe80::1", 1, 0, 1), 1.0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formats_line(), True),
        (f"warning\n{formats_line()} 7\nmore", True),
        ("hand-over formats: 7", False),
        (f"hand-over formats: {FORMAT}7", False),
        (f"formats: {FORMAT}", False),
        (f"hand-over formats {FORMAT}", False),
        ("usage: sniproxy", False),
        ("", False),
    ],
)
def test_a_program_that_reads_our_format(text: str, expected: bool) -> None:
    assert reads_ours(text) == expected
