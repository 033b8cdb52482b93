"""The corpus: inputs that once reached something new, a file a target, a line in hex each."""

import pathlib
from collections.abc import Iterable

from sniproxy.dataplane.state import Arriving, Direction, Leaving, Relayed, State, encode
from sniproxy.parser.proxy_header import version_1, version_2
from tests.hello import extension, hello, message, records, server_name

CORPUS = pathlib.Path(__file__).parent / "corpus"


def load(target: str) -> list[bytes]:
    """Read a target's inputs; there may be none yet."""
    path = CORPUS / f"{target}.hex"
    if not path.exists():
        return []
    return [bytes.fromhex(line) for line in path.read_text().splitlines() if line]


def save(target: str, inputs: Iterable[bytes]) -> None:
    """Write a target's inputs, the short ones first."""
    CORPUS.mkdir(exist_ok=True)
    lines = sorted({data.hex() for data in inputs}, key=lambda line: (len(line), line))
    (CORPUS / f"{target}.hex").write_text("".join(f"{line}\n" for line in lines))


def seeds(target: str) -> list[bytes]:
    """Make a few inputs that reach far."""
    if target == "client_hello":
        wires = [
            hello("a.example"),
            hello("B.Example", record=7),
            hello("a_b", padding=30),
            records(message(None)),
            records(message(server_name((1, b"x"), (0, b"c.example")), session=b"")),
            records(message(extension(16, b"\0\3\2h2") + server_name((0, b"d"))), 50),
        ]
        return [cuts + wire for wire in wires for cuts in (b"\0", b"\1\0", b"\3\4\x09\x60")]
    if target == "host_name":
        names = [
            "a.example",
            "Bücher.example.",
            "xn--bcher-kva.ws",
            "🕸💍.ws",
            "مثال.example",
            "a..b",
        ]
        return [name.encode() for name in names]
    if target == "announcement":
        ends = ("192.0.2.1", 40000), ("192.0.2.2", 443)
        six = ("2001:db8::1", 1), ("::1", 2)
        tlvs = b"\4\0\2xx\5\0\2id"
        headers = [version_1(*ends), version_1(*six), version_1("", "")]
        headers += [version_2(*pair, "a.example", tlvs) for pair in (ends, six, ("", ""))]
        headers.append(version_2(b"/run/a", b"/run/b", "a"))
        return [cut + header + b"\x16\3\1" for header in headers for cut in (b"\0", b"\xff")]
    if target == "handover":
        idle, ended = Direction(1, 0, 0), Direction(2, 1, 0)
        address = ("192.0.2.1", 443)
        states: list[tuple[bytes, list[State]]] = [
            (b"\2\0\1", [Relayed(address, "a.example", 1.0, 2.0, idle, ended)]),
            (b"\3\0\1\x21", [Relayed("", "", 0.0, 0.0, Direction(1, 0, 5), idle)]),
            (b"\2\0\x1b", [Arriving(("2001:db8::1", 1, 2, 3), 3.0, 4)]),
            (b"\2\0\0", [Arriving("", 3.0, 4, announced=True)]),
            (b"\1\0", [Leaving(None)]),
            (b"\2\0\2", [Leaving(7), Leaving(0)]),
            (b"\3\0\0\4", [Relayed(address, "b", 1.0, 0.0, idle, idle), Leaving(1)]),
        ]
        return [kinds + encode(them) for kinds, them in states]
    return [bytes([kind, kind]) + bytes(range(60)) for kind in range(6)] + [b"\0\2" + bytes(300)]
