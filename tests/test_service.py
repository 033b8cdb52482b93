"""The service in a process that is forked for it: its start, signals, end, and what follows.

What it does for clients is for ``tests/end_to_end``, which starts it as a program.
"""

import contextlib
import os
import pathlib
import signal
import socket
from collections.abc import Iterator

import pytest

from sniproxy.dataplane.state import formats_line
from sniproxy.process import service
from tests.end_to_end.harness import wait_until


class Serving:
    """A process that serves in the folder ``hosts``, and its log."""

    def __init__(self, folder: pathlib.Path, **environment: str) -> None:
        self._log_path = folder / "log"
        (folder / "hosts").mkdir()
        self._log_path.touch()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port = listening.getsockname()[1]
            self.pid = os.fork()
            if not self.pid:
                self._serve(folder, listening, environment)

    def _serve(
        self, folder: pathlib.Path, listening: socket.socket, environment: dict[str, str]
    ) -> None:
        """Be the process."""
        status = -1
        try:
            os.chdir(folder / "hosts")
            os.dup2(os.open(self._log_path, os.O_WRONLY | os.O_APPEND), 2)
            os.dup2(listening.fileno(), 0)
            listening.close()
            status = service.serve(environment)
        finally:  # it must not go on as the test run
            os._exit(status)

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def says(self, *words: str) -> None:
        """Wait until it has logged this."""
        wait_until(lambda: all(one in self.log for one in words))

    def tell(self, number: int) -> None:
        os.kill(self.pid, number)

    def ends(self) -> int:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return status


@contextlib.contextmanager
def serving(folder: pathlib.Path, **environment: str) -> Iterator[Serving]:
    made = Serving(folder, **environment)
    try:
        yield made
    finally:
        if made.pid:
            made.tell(signal.SIGKILL)
            made.ends()


@pytest.mark.parametrize("isolate", ["0", "1"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_from_its_start_to_its_stop(tmp_path: pathlib.Path, workers: str, isolate: str) -> None:
    with serving(tmp_path, SNIPROXY_WORKERS=workers, SNIPROXY_ISOLATE=isolate) as made:
        made.says("event=start ", f" workers={workers} listen=127.0.0.1:{made.port} ")
        assert (" isolate=yes " in made.log) == (isolate == "1")
        made.tell(signal.SIGUSR1)
        made.says("event=totals open=0 accepted=0 ")
        made.tell(signal.SIGTERM)
        assert made.ends() == 0
        assert "event=stop reason=SIGTERM" in made.log
        assert "event=exit " in made.log
        assert "level=warning" not in made.log


def test_bad_settings_are_told_and_passed_over(tmp_path: pathlib.Path) -> None:
    said = {"SNIPROXY_WORKERS": "1", "SNIPROXY_LOG": "much", "LISTEN_FDS": "none"}
    with serving(tmp_path, **said) as made:
        made.says("event=bad_setting problem=", "SNIPROXY_LOG=", "event=start ")
        made.tell(signal.SIGINT)
        assert made.ends() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_goes_on_as_the_program_that_lies_there_now(
    tmp_path: pathlib.Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\n[ $# = 0 ] || exec echo '{formats_line()}'\n"
        'echo "event=anew $LISTEN_FDS" >&2; exit 5\n'
    )
    monkeypatch.setattr(service, "own_command", lambda: [str(program)])
    with serving(tmp_path, SNIPROXY_WORKERS=workers) as made:
        made.says("event=start ")
        made.tell(signal.SIGUSR2)
        made.says("event=not_renewed ")
        program.chmod(0o755)
        made.tell(signal.SIGUSR2)
        assert made.ends() == 5
        assert "event=anew " in made.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_on_where_the_program_is_gone_at_last(
    tmp_path: pathlib.Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which had been there a moment ago."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nrm '{program}'\nexec echo '{formats_line()}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(service, "own_command", lambda: [str(program)])
    with serving(tmp_path, SNIPROXY_WORKERS=workers) as made:
        made.says("event=start ")
        made.tell(signal.SIGUSR2)
        made.says("event=not_renewed ", f'"{program}: No such file or directory"')
        wait_until(lambda: made.log.count("event=start ") == 2)
        made.tell(signal.SIGTERM)
        assert made.ends() == 0
