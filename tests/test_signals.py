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
#include <poll.h>
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

int poll(struct pollfd *descriptors, nfds_t count, int milliseconds)
{
    int (*real)(struct pollfd *, nfds_t, int) = dlsym(RTLD_NEXT, "poll");
    before_it_sleeps(milliseconds);
    return real(descriptors, count, milliseconds);
}
"""
"""A signal between Python's last look and the kernel's wait, for a program that loads it."""

PROGRAM = """
import asyncio, selectors, signal
from sniproxy.process.signals import SignalHandlers
loop = asyncio.SelectorEventLoop(selectors.{selector}())
handlers = SignalHandlers(loop)
told = []
{handle}
loop.run_forever()
handlers.close()
loop.close()
print(len(told))
"""


def run(selector: str, handle: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(selector=selector, handle=handle)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: install gcc libc6-dev")
@pytest.mark.parametrize("selector", ["EpollSelector", "PollSelector"])
def test_a_signal_while_the_loop_falls_asleep(tmp_path: pathlib.Path, selector: str) -> None:
    source, library = tmp_path / "signal.c", tmp_path / "signal.so"
    source.write_text(AS_IT_FALLS_ASLEEP)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    stop = "handlers.handle(signal.SIGHUP, lambda: (told.append(1), loop.stop()))"
    done = run(selector, stop, LD_PRELOAD=str(library))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_more_signals_than_the_pipe_holds() -> None:
    """Not a word on standard error, and the one that is to stop the loop does."""
    storm = """
handlers.handle(signal.SIGUSR1, lambda: told.append(1))
handlers.handle(signal.SIGTERM, loop.stop)
for _ in range(70_000):
    signal.raise_signal(signal.SIGUSR1)
signal.raise_signal(signal.SIGTERM)
"""
    done = run("EpollSelector", storm)
    assert (done.returncode, done.stdout, done.stderr) == (0, "70000\n", "")


def test_nothing_is_left_of_it() -> None:
    left = """
import os
handlers.handle(signal.SIGTERM, loop.stop)
handlers.close()
assert signal.set_wakeup_fd(-1) == -1
before = os.listdir("/proc/self/fd")
handlers = SignalHandlers(loop)
handlers.close()
assert os.listdir("/proc/self/fd") == before
handlers = SignalHandlers(loop)
loop.call_soon(loop.stop)
"""
    done = run("EpollSelector", left)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
