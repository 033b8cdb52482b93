"""Which bytes are a host name, against a plain statement of the rule."""

import os
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sniproxy.parser import host_name
from sniproxy.parser.host_name import MAX_LENGTH, canonical, shown

ALLOWED = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


def rule(name: bytes) -> bool:
    """1 to 254 bytes of those allowed without one dot at the end, no label empty or with a hyphen
    or an underscore in front."""
    name = name.removesuffix(b".")
    labels = name.split(b".")
    return (
        1 <= len(name) <= 254
        and all(byte in ALLOWED for byte in name)
        and all(label and label[:1] not in b"-_" for label in labels)
    )


@given(
    name=st.one_of(
        st.binary(max_size=300),
        st.text("aZ09-_.", max_size=300).map(str.encode),
        st.lists(st.text("aZ09-_", max_size=9), max_size=9).map(
            lambda labels: ".".join(labels).encode()
        ),
    )
)
@example(name=b"a\n")
@example(name=b"a.\n")
@example(name=b"a..")
@example(name=b"a._.b")
@example(name="ſ".encode())
@example(name="\u212a".encode())
def test_the_rule(name: bytes) -> None:
    expected = name.decode().lower().removesuffix(".") if rule(name) else None
    assert canonical(name) == expected


@pytest.mark.parametrize("byte", range(256))
def test_each_byte(byte: int) -> None:
    one = bytes([byte])
    alone, inside = canonical(one), canonical(b"a" + one + b"b")
    assert (alone is not None) == (byte in ALLOWED and one not in b"-_.")
    assert (inside is not None) == (byte in ALLOWED)
    assert inside is None or inside == inside.lower()


def test_length() -> None:
    assert canonical(b"") is None
    assert canonical(b"a" * MAX_LENGTH) == "a" * 254
    assert canonical(b"a" * 255) is None
    assert canonical(b"a" * MAX_LENGTH + b".") == "a" * 254
    assert canonical(b"a" * 255 + b".") is None


@given(name=st.binary(max_size=300))
def test_what_passes_is_one_harmless_entry(name: bytes) -> None:
    host = canonical(name)
    if host is not None:
        assert os.path.normpath(host) == host
        assert os.path.basename(host) == host
        assert len(os.fsencode(host)) <= 255
        assert canonical(host.encode()) == host


def test_what_is_no_host_name_is_shown_byte_by_byte_and_cut() -> None:
    assert shown(b"a\x00\xff") == "a\x00\xff"
    assert shown(b"a" * MAX_LENGTH) == "a" * MAX_LENGTH
    assert shown(b"a" * 9999) == "a" * MAX_LENGTH + "..."


def test_the_names_that_are_remembered_are_bounded_in_bytes() -> None:
    """A thousand or so, none of them longer than a host name may be."""

    def ask(size: int) -> int:
        host_name._canonical.cache_clear()
        tracemalloc.start()
        for number in range(3000):
            canonical(b"%06d" % number * (size // 6))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    assert ask(6_000) < 64 * 1024
    assert 100 * 1024 < ask(MAX_LENGTH) < 1024 * 1024
