"""The resolvers as the first process has them: real ones, asked by the test."""

import os

from sniproxy.process.resolvers import Resolvers
from sniproxy.resolver.answer import NOBODY, Outcome, answered, ask
from sniproxy.resolver.hosts import Hosts
from tests.processes import forbid, in_child


def said(resolvers: Resolvers, worker: int, host: str) -> tuple[int, str]:
    """Ask; give the outcome of the answer, and its text."""
    desk = resolvers.desk(worker)
    desk.questions.send(ask(7, worker, [((8, NOBODY, 0), host)]))
    found, more = [], True
    while more:  # one that takes long is told first, and then that there are no others
        sent, more, heads, texts = answered(desk.answers.recv(512))
        assert sent == 7
        found += [(number, outcome, texts) for number, outcome, *_ in heads]
    ((number, outcome, text),) = found
    assert number == 8
    return outcome, text


def test_each_worker_has_its_own_answers(hosts: Hosts) -> None:
    def work() -> None:
        resolvers = Resolvers(hosts, 2)
        assert resolvers.start()
        for worker in (1, 0):
            found = said(resolvers, worker, "a.example")
            assert found == (Outcome.REFUSED, "a.example no_such_host")
        assert resolvers.desk(0).trouble() == ""
        resolvers.end()

    in_child(work)


def test_no_process_at_all(hosts: Hosts) -> None:
    def work() -> None:
        resolvers = Resolvers(hosts, 1)
        forbid("clone", 11)
        assert not resolvers.start()
        assert resolvers.desk(0).trouble() == f"no_resolver {os.strerror(11)}"
        resolvers.end()

    in_child(work)
