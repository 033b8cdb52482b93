"""A status socket that says what a test wants, and documents for it to say."""

import contextlib
import json
import pathlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07",
    "right\u202eleft\u2066",
    "\x9b2J\x85\x7f\r\n\t",
    "wide字é\u0301",
    "n" * 300,
    "\udcff\ud800",
)
"""Names that would command a terminal, turn the writing, or take more room than they should."""


def host(name: str, **fields: float) -> dict[str, Any]:
    usual = {"open": 0, "connections": 0, "bytes_up": 0, "bytes_down": 0, "backend_faults": 0}
    return {"host": name} | usual | fields


def connection(client: str, name: str = "a.example", **fields: Any) -> dict[str, Any]:
    usual = {"state": "relaying", "worker": 0, "age": 12.3, "idle": 0.5}
    return {"client": client, "host": name} | usual | {"bytes_up": 1, "bytes_down": 2} | fields


def document(*hosts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Make a statement in the form of docs/reference/status.schema.json."""
    worker = {"number": 0, "pid": 123, "open": 10, "descriptors": 25, "descriptors_max": 524288}
    return {
        "version": 1,
        "time": 1764216000.123,
        "started": 1764210000.0,
        "build": {"version": "0.1.0", "flavour": "plain"},
        "listen": ["[::]:443"],
        "isolate": False,
        "workers": [worker | {"answered": True}],
        "worker_restarts": 0,
        "connections": {
            "accepted": 100,
            "adopted": 0,
            "open": 10,
            "refused": {"no_such_host": 3, "no_server_name": 4},
        },
        "bytes_up": 1000,
        "bytes_down": 2048,
        "hello_seconds": {"count": 90, "sum": 0.5, "buckets": [[0.001, 80], [10.0, 90]]},
        "backend_seconds": {"count": 0, "sum": 0.0, "buckets": []},
        "log_lines_dropped": 0,
        "hosts": list(hosts),
    } | fields


def ok(body: Any) -> bytes:
    """Make an answer; of what is no bytes, in JSON."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    return head.encode() + b"\r\n" + text


def paged(pages: list[list[dict[str, Any]]], **fields: Any) -> Callable[[str], bytes]:
    """Answer with open connections page by page; anything else without them."""

    def answer(path: str) -> bytes:
        if "connections=" not in path:
            return ok(document(**fields))
        after = re.search(r"after=(\d+)", path)
        number = int(after[1]) if after else 0
        following = str(number + 1) if number + 1 < len(pages) else None
        return ok(document(**fields) | {"open_connections": pages[number], "next": following})

    return answer


class Stub:
    """Answers each connection by ``answer(path)``; None leaves it without an answer, but open, and
    so stays each one that has its answer where ``holds`` is set."""

    def __init__(self, listening: socket.socket, answer: Callable[[str], bytes | None]) -> None:
        self.answer = answer
        self.holds = False
        self.requests: list[str] = []
        self._listening = listening
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):  # a client that has seen enough
                asked = client.recv(65536).decode()
                if asked:  # and it has not gone again
                    self.requests.append(asked)
                    said = self.answer(asked.split(" ")[1])
                    if said is not None:
                        client.sendall(said)
                    if said is None or self.holds:
                        self._held.append(client)
                        continue
            client.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for one in (self._listening, *self._held):
            one.close()


@contextlib.contextmanager
def stub(path: pathlib.Path, answer: Callable[[str], bytes | None]) -> Iterator[Stub]:
    """Have one at a Unix socket."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    serving = Stub(listening, answer)
    try:
        yield serving
    finally:
        serving.close()
        path.unlink()
