"""The directory of a host name, in both flavours."""

import base64
import shutil
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.parser.host_name import canonical
from sniproxy.resolver import naming


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing: install openssl")
@pytest.mark.parametrize("name", ["a.example", "a" * 254, "xn--bcher-kva.example"])
def test_the_hash_is_that_of_another_program(name: str) -> None:
    assert naming.hashed(name) == openssl(name)


def openssl(name: str) -> str:
    """Hash with OpenSSL's BLAKE2s-256, and encode by RFC 4648 section 5."""
    done = subprocess.run(
        ["openssl", "dgst", "-blake2s256", "-binary"],
        input=name.encode(),
        capture_output=True,
        check=True,
    )
    return base64.urlsafe_b64encode(done.stdout).decode().rstrip("=")


@given(name=st.from_regex(r"[a-z0-9]{1,60}(\.[a-z0-9]{1,60}){0,3}", fullmatch=True))
def test_hashes_are_names_of_43_characters(name: str) -> None:
    hashed = naming.hashed(name)
    assert len(hashed) == 43
    assert set(hashed) <= set(base64.urlsafe_b64encode(bytes(range(256))).decode()) | set("-_")
    assert "=" not in hashed
    # So that its socket always fits an address.
    assert len(f"{hashed}/{naming.SOCKET}") <= 107


def test_the_hashes_that_are_remembered_are_bounded_in_bytes() -> None:
    """A thousand or so; no host name is longer than 254."""
    naming.hashed.cache_clear()
    tracemalloc.start()
    for number in range(3000):
        naming.hashed(f"{number:04}" + "x" * 250)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 100 * 1024 < held < 1024 * 1024


@pytest.mark.parametrize(
    ("host", "entries"),
    [
        ("a.b.example", ("_.b.example", "_default")),
        ("b.example", ("_.example", "_default")),
        ("localhost", ("_default",)),
        ("", ("_nosni",)),
    ],
)
def test_what_serves_a_host_without_a_directory(host: str, entries: tuple[str, ...]) -> None:
    assert naming.fallbacks(host) == entries
    for entry in entries:
        assert canonical(entry.encode()) is None, "a client could ask for it"


def test_plain_is_the_name_itself() -> None:
    assert naming.plain("a.example") == "a.example"


def test_the_flag_decides() -> None:
    for flag, expected in (("False", "a.example"), ("True", naming.hashed("a.example"))):
        program = (
            f"from sniproxy import flavour; flavour.HASHED = {flag}; "
            "from sniproxy.resolver import naming; from sniproxy.version import version_line; "
            "print(naming.directory_name('a.example'), version_line('x'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, text=True
        )
        directory, _, _, shown = done.stdout.split()
        assert directory == expected
        assert shown == {"False": "(plain)", "True": "(hashed)"}[flag]
