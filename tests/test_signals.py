"""Signals reach the loop: one that comes while it falls asleep, and more than are counted."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.end_to_end.harness import TIMEOUT

AS_IT_FALLS_ASLEEP = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/epoll.h>

static void before_it_sleeps(int milliseconds)
{
    static int done;
    if (milliseconds < 0 && !done++)
        raise(SIGHUP);
}

int epoll_wait(int epoll, struct epoll_event *events, int count, int milliseconds)
{
    int (*real)(int, struct epoll_event *, int, int) = dlsym(RTLD_NEXT, "epoll_wait");
    before_it_sleeps(milliseconds);
    return real(epoll, events, count, milliseconds);
}
"""
"""A signal between Python's last look and the kernel's wait, for a program that loads it."""

PROGRAM = """
import signal, sys
from sniproxy.dataplane.poller import Poller
from sniproxy.process.signals import SignalHandlers
poller = Poller(sys.exit)
handlers = SignalHandlers(poller)
told, over = [], []
{handle}
poller.run(lambda: over)
handlers.close()
poller.close()
print(len(told))
"""


def run(handle: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(handle=handle)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: install gcc libc6-dev")
def test_a_signal_while_the_loop_falls_asleep(tmp_path: pathlib.Path) -> None:
    source, library = tmp_path / "signal.c", tmp_path / "signal.so"
    source.write_text(AS_IT_FALLS_ASLEEP)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    stop = "handlers.handle(signal.SIGHUP, lambda: (told.append(1), over.append(1)))"
    done = run(stop, LD_PRELOAD=str(library))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_more_signals_than_the_pipe_holds() -> None:
    """Not a word on standard error, and the one that is to stop the loop does."""
    storm = """
handlers.handle(signal.SIGUSR1, lambda: told.append(1))
handlers.handle(signal.SIGTERM, lambda: over.append(1))
for _ in range(70_000):
    signal.raise_signal(signal.SIGUSR1)
signal.raise_signal(signal.SIGTERM)
"""
    done = run(storm)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_nothing_is_left_of_it() -> None:
    left = """
import os
handlers.handle(signal.SIGTERM, lambda: over.append(1))
handlers.close()
assert signal.set_wakeup_fd(-1) == -1
before = os.listdir("/proc/self/fd")
handlers = SignalHandlers(poller)
handlers.close()
assert os.listdir("/proc/self/fd") == before
handlers = SignalHandlers(poller)
over.append(1)
"""
    done = run(left)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_signal_while_it_is_acted_on_is_acted_on_once_more() -> None:
    """As of a second worker that ends while the first is waited for."""
    again = """
def act():
    told.append(1)
    if len(told) == 1:
        signal.raise_signal(signal.SIGCHLD)
    else:
        over.append(1)
handlers.handle(signal.SIGCHLD, act)
signal.raise_signal(signal.SIGCHLD)
"""
    done = run(again)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_a_stop_that_nobody_has_acted_on_is_for_the_next_program() -> None:
    """It waits for whoever has handlers next in this process; what only asks something does not."""
    late = """
import os
acts = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
for number in acts:
    handlers.handle(number, lambda: told.append(0))
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.raise_signal(number)
# As where memory has failed for what Python calls besides.
os.write(handlers._write, bytes([signal.SIGHUP]))
handlers.end()
assert signal.sigpending() == {signal.SIGHUP, signal.SIGTERM}
signal.raise_signal(signal.SIGINT)
handlers = SignalHandlers(poller)
for number in acts:
    handlers.handle(number, lambda number=number: told.append(number))
handlers.handle(signal.SIGCHLD, lambda: over.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, acts | {signal.SIGCHLD})
signal.raise_signal(signal.SIGCHLD)
poller.run(lambda: over)
assert sorted(told) == [signal.SIGHUP, signal.SIGINT, signal.SIGTERM]
"""
    done = run(late)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


STOPS = """
class Owner:
    handed_over = False
    reasons = []

    def stop(self, reason):
        self.reasons.append(reason)
        return len(self.reasons) == 1

    def stop_now(self, reason):
        told.append(reason)

owner = Owner()
def come(number):
    signal.raise_signal(number)
    poller.select(0)
"""


def test_a_second_stop_is_at_once() -> None:
    stops = """
handlers.handle_stops(owner, in_place=True)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
    come(number)
assert owner.reasons == ["SIGHUP", "SIGTERM"]
assert told == ["SIGTERM", "SIGINT"]
over.append(1)
"""
    done = run(STOPS + stops)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_a_stop_of_who_has_handed_over_in_place_is_left_to_the_next_program() -> None:
    left = """
handlers.handle_stops(owner, in_place=True)
owner.handed_over = True
come(signal.SIGTERM)
assert (owner.reasons, told) == ([], [])
come(signal.SIGHUP)
come(signal.SIGHUP)
assert (owner.reasons, told) == (["SIGHUP", "SIGHUP"], ["SIGHUP"])
handlers.end()
assert signal.sigpending() == {signal.SIGTERM}
handlers = SignalHandlers(poller)
over.append(1)
"""
    done = run(STOPS + left)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_more_signals_than_it_takes() -> None:
    """Whoever sends them faster than they are taken: what came is acted on all the same."""
    endless = """
import os, subprocess
# As the kernel has Python write them.
flood = f"import os\\nwhile True: os.write({handlers._write}, bytes([{signal.SIGUSR1:d}]) * 4096)"
os.set_blocking(handlers._write, True)
sender = subprocess.Popen([sys.executable, "-c", flood], pass_fds=[handlers._write])
handlers.handle(signal.SIGUSR1, lambda: told.append(1))
while len(told) < 100:
    poller.select()
sender.kill()
sender.wait()
over.append(1)
"""
    done = run(endless)
    assert (done.returncode, done.stdout, done.stderr) == (0, "100\n", "")
