"""Look-ups in processes of their own: a client sees no difference. The tests of names, files and
waiting are run again with all of it switched on; those of hands-over that must hold then, too."""

import os
import pathlib
import signal
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import Backend, Proxy, read_exactly, wait_for
from tests.end_to_end.test_alerts import *  # noqa: F403 - each is run again here
from tests.end_to_end.test_entries import *  # noqa: F403
from tests.end_to_end.test_lookup import *  # noqa: F403
from tests.hello import hello

Start = Callable[..., Proxy]
Make = Callable[..., Backend]


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNIPROXY_ISOLATE", "1")


@pytest.mark.parametrize(
    ("mode", "wish", "isolated"),
    [
        (0o755, None, False),
        (0o1773, None, True),
        (0o1771, None, True),
        (0o755, "1", True),
        (0o1777, "0", False),
    ],
)
def test_where_it_is_on(
    start: Start,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    wish: str | None,
    isolated: bool,
) -> None:
    monkeypatch.delenv("SNIPROXY_ISOLATE")
    os.chmod(tmp_path / "hosts", mode)
    proxy = start(**({} if wish is None else {"SNIPROXY_ISOLATE": wish}))
    wait_for(proxy, "event=start")
    assert ("isolate=yes" in proxy.log) == isolated


def test_a_wrong_setting_is_said(start: Start) -> None:
    proxy = start(SNIPROXY_ISOLATE="maybe")
    wait_for(proxy, "SNIPROXY_ISOLATE=maybe: expected 1 or 0")


def test_all_leave_at_a_stop(start: Start, backend_of: Make) -> None:
    """No process is left that has our standard error or the hosts directory."""
    proxy = start()
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.sendall(hello("a.example"))
        stream = backend.accept()
        read_exactly(stream, len(hello("a.example")))
        proxy.process.send_signal(signal.SIGTERM)
        wait_for(proxy, "event=stop")
        stream.sendall(b"to the end")
        assert read_exactly(client, 10) == b"to the end"
        stream.close()
    assert proxy.process.wait(20) == 0
