"""Where the fuzzers are left out, it is said; where they can run, they must."""

from tests.fuzz.fuzz import why_left_out


def test_an_architecture_without_a_wheel_is_named() -> None:
    assert "no wheel of atheris for aarch64" in (why_left_out("aarch64", installed=False) or "")


def test_nothing_is_left_out_where_there_is_a_wheel() -> None:
    assert why_left_out("x86_64", installed=False) is None
    assert why_left_out("aarch64", installed=True) is None
