"""Host names to directory names, by the rules of UTS #46 as browsers apply them."""

import io
import signal
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sniproxy.parser.host_name import canonical
from sniproxy.tools.hostname import InvalidNameError, main, to_ascii


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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a,b", "has U+002C COMMA at position 2: only"),
        ("_b", "has a label that starts with a hyphen or an underscore"),
        ("ab/½", "has U+002F SOLIDUS at position 3: only"),
        ("a\u2100b.example", "has U+2100 ACCOUNT OF at position 2: only"),
        ("bücher.a b", "has U+0020 SPACE at position 9: only"),
        ("\x1b[31m", "has U+001B at position 1: only"),
        ("a.\ud800", "has U+D800 at position 3, which no"),
        ("a\udcff", "has a byte that is no UTF-8 (FF) at position 2, which no"),
        ("ab\u2fff", "has U+2FFF at position 3, which no"),
        ("xn--a-6da", "decodes to U+00C4 LATIN CAPITAL LETTER A WITH DIAERESIS at position 2"),
        ("\u0308a", "combining mark: U+0308 COMBINING DIAERESIS at position 1"),
        ("a\u200db", "has U+200D ZERO WIDTH JOINER at position 2 of"),
        ("\u05d0a", "look at U+0061 LATIN SMALL LETTER A at position 2"),
        ("a.-b", "has a label that starts with a hyphen"),
    ],
)
def test_the_wrong_character_is_named(name: str, words: str) -> None:
    with pytest.raises(InvalidNameError) as raised:
        to_ascii(name)
    assert words in str(raised.value)


def test_entries_that_serve_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["*.Bücher.example.", "_.example", "_default", "_nosni", "a_.example"]) == 0
    out, _ = capsys.readouterr()
    assert out.split() == [
        "_.xn--bcher-kva.example",
        "_.example",
        "_default",
        "_nosni",
        "a_.example",
    ]


@pytest.mark.parametrize(
    "name", ["*", "*.", "_.", "*.*.a", "_._.a", "a.*", "_Default", "_x", "_nosni.a"]
)
def test_entries_that_serve_nobody(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_a_wildcard_leaves_room_for_a_label(capsys: pytest.CaptureFixture[str]) -> None:
    parent = ".".join(["x" * 62] * 4)
    assert main(["*." + parent]) == 0
    assert main(["*." + parent + "y"]) == 0
    assert main(["*." + parent + "y."]) == 0
    assert main(["*.yyy." + parent.replace("xx", "", 1)]) == 1
    assert "leaves no room" in capsys.readouterr().err


def test_names_after_a_refused_one_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a.example", "\ufdfa" * 60, "b.example"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("a.example\nb.example\n", 1)


def test_two_hyphens_end_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--", "a.example", "--help"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (
        "a.example\n",
        "sniproxy-hostname: '--help' has a label that starts with a hyphen or an underscore\n",
    )


def test_good_names_are_printed_bad_ones_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a.example", "b,c", "D.example"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.startswith("sniproxy-hostname: 'b,c' has")
    assert main(["a.example"]) == 0


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = io.TextIOWrapper(io.BytesIO(b"a.example\n\nb\xffc\n"), "utf-8")
    monkeypatch.setattr(sys, "stdin", text)
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out == "a.example\n"
    assert err.count("\n") == 1


def run(script: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    program = "import sys; from sniproxy.commands import sniproxy_hostname as c; sys.exit(c())"
    words = ["/bin/sh", "-c", script, "sh", sys.executable, "-c", program, *arguments]
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=60, input=text
    )


def test_odd_standard_input() -> None:
    for redirection in ("<&-", "0>/dev/null"):
        done = run(f'"$@" {redirection}')
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("sniproxy-hostname: can't read names from standard input: ")
        assert done.stderr.count("\n") == 1
    done = run('"$@"', text="x" * 10_000_000 + "\r\n A.Example \r\n")
    assert (done.returncode, done.stdout) == (1, "a.example\n")
    assert len(done.stderr) < 200


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
