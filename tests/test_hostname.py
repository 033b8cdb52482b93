"""Host names to directory names, by the rules of UTS #46 as browsers apply them."""

import io
import signal
import subprocess
import sys

import pytest

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
        "a_b",
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


def test_good_names_are_printed_bad_ones_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a.example", "b_c", "D.example"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.startswith("sniproxy-hostname: 'b_c' has")
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
