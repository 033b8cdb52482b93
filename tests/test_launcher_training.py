"""The load that the interpreter's profile is taken from."""

from launcher.chain import training
from sniproxy.parser.client_hello import ClientHelloParser


def test_the_hellos_ask_for_their_hosts() -> None:
    for host in training.HOSTS:
        assert ClientHelloParser().feed(training.client_hello(host)) == host


def test_the_hellos_are_of_common_size() -> None:
    assert 250 < len(training.client_hello("plain.example")) < 400
