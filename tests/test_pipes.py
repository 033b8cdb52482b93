"""The pool of pipes."""

import os

import pytest

from sniproxy.dataplane.pipes import BULK, MAX_PIPES, Pipes


def test_pipes_are_few_and_used_again() -> None:
    pipes = Pipes()
    taken = []
    while (pipe := pipes.take()) is not None:
        taken.append(pipe)
    assert len(taken) <= MAX_PIPES
    assert all(pipe.size >= BULK for pipe in taken)
    first = taken[0]
    pipes.give_back(first)
    assert pipes.take() is first
    # One that still holds bytes would give them to somebody else: it is closed.
    os.write(first.write, b"somebody's")
    first.held = 10
    pipes.give_back(first)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first.read)
    another = pipes.take()
    assert another is not None
    assert another is not first
    for pipe in [another, *taken[1:]]:
        pipes.give_back(pipe)
    pipes.close()
