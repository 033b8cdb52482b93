"""The load that the interpreter's profile is taken from."""

import pathlib
import sys

from launcher.chain import training
from sniproxy.parser.client_hello import ClientHelloParser


def test_the_hellos_ask_for_their_hosts() -> None:
    for host in training.HOSTS:
        assert ClientHelloParser().feed(training.client_hello(host)) == host


def test_the_hellos_are_of_common_size() -> None:
    assert 250 < len(training.client_hello("plain.example")) < 400


def test_look_ups_are_what_a_resolver_does(tmp_path: pathlib.Path) -> None:
    """As of today: it is no call of the proxy's, but one of its insides."""
    training._lay_out(tmp_path)
    with training._backends(tmp_path):
        command = [sys.executable, "-P", "-c", training.RESOLVE, *training.HOSTS]
        training._run(command, {"PYTHONPATH": str(pathlib.Path.cwd())}, tmp_path)
