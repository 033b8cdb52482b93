"""What is asked of a status socket, and what is said where there is no answer."""

import os
import pathlib
import pwd
import socket
from typing import Any

import pytest

from sniproxy.tools import inquiry
from sniproxy.tools.inquiry import LARGEST, AddressError, Inquiry, InquiryError, patiently
from tests.deployment.inside.manual import block
from tests.processes import in_child
from tests.status_stub import Stub, connection, document, host, ok, paged, stub

ANSWER = ok(document(host("a.example")))


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "status"


def ask(where: pathlib.Path | str, *, connections: bool = False) -> list[dict[str, Any]]:
    return list(Inquiry(str(where), patiently).pages(connections=connections))


def reason(where: pathlib.Path | str, *, connections: bool = False) -> str:
    """Give what is said after the socket's name."""
    with pytest.raises(InquiryError) as caught:
        ask(where, connections=connections)
    name, words = str(caught.value).split(": ", 1)
    assert name == f"{str(where)!a}"
    assert words.isprintable()
    return words


@pytest.mark.parametrize("prefix", ["", "unix:"])
def test_it_asks_once(path: pathlib.Path, prefix: str) -> None:
    with stub(path, lambda _: ANSWER) as server:
        assert ask(f"{prefix}{path}") == [document(host("a.example"))]
        assert server.requests == ["GET /status.json HTTP/1.0\r\nHost: localhost\r\n\r\n"]


@pytest.mark.parametrize("host_part", ["127.0.0.1", "[::1]"])
def test_it_asks_by_tcp(host_part: str) -> None:
    family = socket.AF_INET6 if "[" in host_part else socket.AF_INET
    listening = socket.create_server((host_part.strip("[]"), 0), family=family)
    port = listening.getsockname()[1]
    server = Stub(listening, lambda _: ANSWER)
    try:
        assert ask(f"{host_part}:{port}") == [document(host("a.example"))]
    finally:
        server.close()
    expected = "Connection refused (nobody listens there)"
    assert reason(f"{host_part}:{port}") == expected


@pytest.mark.parametrize(
    "where",
    ["localhost:80", "127.0.0.1:65536", "127.0.0:80", "[::1]", "::1:80", ":80", "a:b", "1.2.3.4:"],
)
def test_what_is_no_address(where: str) -> None:
    with pytest.raises(AddressError, match="names are not resolved"):
        Inquiry(where, patiently)


def test_pages_follow_each_other(path: pathlib.Path) -> None:
    pages = [[connection(f"192.0.2.{n}:1")] for n in range(3)]
    with stub(path, paged(pages)) as server:
        found = ask(path, connections=True)
        assert [page["open_connections"] for page in found] == pages
        paths = [request.split(" ")[1] for request in server.requests]
        first = "/status.json?connections=1000"
        assert paths == [first, f"{first}&after=1", f"{first}&after=2"]


@pytest.mark.parametrize("cursor", ["", "a b", "1\r\nX: y", "\x1b", "a&b", "ü", "9" * 201])
def test_a_next_page_that_is_none(path: pathlib.Path, cursor: str) -> None:
    said = document() | {"open_connections": [], "next": cursor}
    with stub(path, lambda _: ok(said)) as server:
        assert reason(path, connections=True).endswith("its next page is none")
        assert len(server.requests) == 1


def test_a_circle_of_pages(path: pathlib.Path) -> None:
    with stub(path, lambda _: ok(document() | {"open_connections": [], "next": "1"})) as server:
        assert reason(path, connections=True).endswith("its next page is none")
        assert len(server.requests) == 2


HEAD, _, BODY = ANSWER.partition(b"\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        # Without a length, it ends with the connection.
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.1 200\r\nX: y\r\n\r\n" + BODY,
        # What follows an answer of a known length is none of it.
        ANSWER + b"HTTP/1.0 500 no\r\n\r\n",
        ANSWER.replace(b"Content-Length", b"content-LENGTH"),
    ],
)
def test_answers(path: pathlib.Path, answer: bytes) -> None:
    with stub(path, lambda _: answer):
        assert ask(path) == [document(host("a.example"))]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "it closes the connection without an answer"),
        (b"HTTP", "its answer ends too soon"),
        (HEAD, "its answer ends too soon"),
        (ANSWER[:-1], "its answer ends too soon"),
        (HEAD + b"\r\n\r\n", "its answer ends too soon"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + BODY[:-1], "its answer ends too soon"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + BODY + b"}", "what answers is no status.json: Extra data"),
        (b"HTTP/1.0 200 OK\r\n\r\n<p>hello", "what answers is no status.json: Expecting value"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", "what answers is no status.json: it has version None"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "what answers does not speak HTTP"),
        (b"HTTP/2 200\r\n\r\n", "what answers does not speak HTTP"),
        (b"HTTP/1.1 no\r\n\r\n", "what answers does not speak HTTP"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "it answers 404 Not Found"),
        (b"HTTP/1.0 503 \xff\x1b[2J\r\n\r\n", "it answers 503 \\xff\\x1b[2J"),
        (b"HTTP/1.0 503 No\r\n\r\n\nbusy\x1b\nmore\n", "it answers 503 No: busy\\x1b"),
        (b"HTTP/1.0 503 " + b"a" * 9999 + b"\r\n\r\n", "it answers 503 aaaa"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b" " * LARGEST, "or more"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b" " * LARGEST, "its answer has 8 MiB or more"),
        (b"HTTP/1.0 200 " + b"a" * LARGEST, "its answer has 8 MiB or more"),
    ],
)
def test_what_is_no_answer(path: pathlib.Path, answer: bytes, words: str) -> None:
    with stub(path, lambda _: answer):
        told = reason(path)
        assert words in told
        assert len(told) < 300


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.0 20", HEAD, ANSWER[:-1]])
def test_who_says_no_more_is_left(
    path: pathlib.Path, answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiry, "PATIENCE", 0.2)
    with stub(path, lambda _: answer) as server:
        server.holds = True
        assert reason(path) == "it has not answered within 0 seconds"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.0 503 Busy\r\n\r\n", "it answers 503 Busy"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n", "its answer ends too soon"),
        (b"", "it closes the connection without an answer"),
    ],
)
def test_who_closes_without_listening_is_heard(
    path: pathlib.Path, answer: bytes, words: str
) -> None:
    """Whether or not the question was sent before, or could be."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def before_the_wait(waiting: socket.socket | None, events: int, seconds: float) -> None:
            client, _ = listening.accept()
            client.sendall(answer)
            client.close()
            asking._wait = patiently

        asking = Inquiry(str(path), before_the_wait)
        with pytest.raises(InquiryError, match=words):
            next(asking.pages(connections=False))


def test_an_answer_of_known_length_ends_there(path: pathlib.Path) -> None:
    with stub(path, lambda _: ANSWER) as server:
        server.holds = True
        assert ask(path) == [document(host("a.example"))]


def test_a_full_queue_is_waited_for_so_long(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiry, "PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as other:
        full.bind(str(path))
        full.listen(0)
        other.connect(str(path))
        assert reason(path) == "it has not answered within 0 seconds"


@pytest.mark.parametrize("usual", [True, False])
def test_nobody_is_there(path: pathlib.Path, usual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the unit listens, how to enable it is told."""
    monkeypatch.setattr(inquiry, "SOCKET", str(path) if usual else inquiry.SOCKET)
    enable = f": {' && '.join(block('how-to/monitoring.md', 'The status socket').splitlines())}"
    enable = enable if usual else ""
    missing = f"No such file or directory (there is no such socket{enable})"
    assert reason(path) == missing
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert reason(path) == f"Connection refused (nobody listens there{enable})"
    path.unlink()
    path.touch()
    assert reason(path) == "Connection refused (it is no socket)"
    assert reason(path / "below") == "Not a directory"
    assert reason("/" + "long" * 50) == "AF_UNIX path too long"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_may_is_told(tmp_path: pathlib.Path, path: pathlib.Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o7777 == 0o700:  # pytest's own
            folder.chmod(0o755)

    def told() -> str:
        read, write = os.pipe()

        def work() -> None:
            os.setgroups([])
            os.setgid(nobody)
            os.setuid(nobody)
            os.write(write, reason(path).encode())

        in_child(work)
        os.close(write)
        with open(read) as said:
            return said.read()

    with stub(path, lambda _: ANSWER):
        path.chmod(0o660)
        os.chown(path, 0, 4)
        start = f"Permission denied (uid {nobody} may not connect"
        assert told() == f"{start}: those in the group adm may)"
        os.chown(path, 0, 54321)
        assert told() == f"{start}: those in the group 54321 may)"
        path.chmod(0o600)
        assert told() == f"{start})"
        tmp_path.chmod(0o700)
        assert told() == f"{start})"
        tmp_path.chmod(0o755)
