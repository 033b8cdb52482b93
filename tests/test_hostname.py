"""Host names to directory names, by the rules of UTS #46 as browsers apply them."""

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sniproxy.parser.host_name import canonical
from sniproxy.tools.hostname import InvalidNameError, to_ascii
from tests.transcript import cases


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.com.", "example.com"),
        ("🕸💍.ws", "xn--sr8hvo.ws"),
        ("faß.de", "xn--fa-hia.de"),
        ("Bücher.Example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("日本語。jp", "xn--wgv71a119e.jp"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("ＡＢＣ.example", "abc.example"),
        ("r3---sn.example", "r3---sn.example"),
        ("مثال.example", "xn--mgbh0fb.example"),
        ("1.2.3.4", "1.2.3.4"),
    ],
)
def test_valid(name: str, expected: str) -> None:
    assert to_ascii(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        "_a",
        "a._b",
        "-a",
        "a b",
        "a/b",
        "[::1]",
        "xn--",
        "xn--a",
        "xn--example-",
        "xn--ls8h=",
        "\u0308a",
        "a\u200db.example",
        "אa.example",
        "x" * 64,
        ".".join(["x" * 60] * 5),
        "\ud800",
        "\0",
        "\u00ad",
        "a\u00ad" * 501,
        "ü" * 60,
        "b\u200c.example",
    ],
)
def test_invalid(name: str) -> None:
    with pytest.raises(InvalidNameError):
        to_ascii(name)


_ODD = st.sampled_from(
    "\u200c\u200d\u094d\ufdfa\u0661\u06f1a-.\u05d0\u0627\u0308\U0010ffff\ud800\udcff"
)
_LABELS = st.one_of(
    st.text(st.characters(), max_size=80),
    st.lists(_ODD, max_size=60).map("".join),
    st.text("abcxyz019-", max_size=40).map("xn--".__add__),
    st.text(st.characters(min_codepoint=128), max_size=20).map(
        lambda text: "xn--" + text.encode("punycode").decode()
    ),
    st.builds(
        lambda text, times: text * times, st.text(st.characters(), max_size=9), st.integers(1, 99)
    ),
)


@given(st.lists(_LABELS, min_size=1, max_size=4).map(".".join))
@example("\ufdfa" * 60)
@example("xn--" + "\ud800".encode("punycode").decode())
def test_any_text_is_a_name_or_refused(text: str) -> None:
    """Whatever idna and the codecs raise, it is that one name which is refused."""
    refusal = ""
    try:
        name = to_ascii(text)
    except InvalidNameError as error:
        refusal = str(error)
    else:
        assert canonical(name.encode()) == name
        assert to_ascii(name) == name
    assert refusal.isascii()
    assert refusal == "" or refusal.isprintable()


def test_an_answer_comes_as_soon_as_its_line() -> None:
    program = "import sys; from sniproxy.commands import sniproxy_hostname as c; sys.exit(c())"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        for _ in range(2):
            process.stdin.write("FAẞ.de\n".encode())
            process.stdin.flush()
            assert process.stdout.readline() == b"xn--fa-hia.de\n"
        # Ctrl-C is no error of the program's.
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT


@pytest.mark.parametrize("case", cases("sniproxy-hostname"))
def test_transcript(case: str, play: Callable[[str], None]) -> None:
    play(case)
