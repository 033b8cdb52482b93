"""How addresses are written, and whom they are counted for."""

import pytest

from sniproxy.dataplane.address import address_text, client_text, network
from sniproxy.log.log import Clients
from sniproxy.parser.proxy_header import SocketAddress


def test_addresses_of_clients() -> None:
    assert address_text(("1.2.3.4", 5)) == "1.2.3.4:5"
    assert address_text(("::1", 5, 0, 0)) == "[::1]:5"
    assert address_text("") == "unix"
    # Of a socket for both families.
    assert address_text(("::ffff:1.2.3.4", 5, 0, 0)) == "1.2.3.4:5"
    assert address_text(("::1.2.3.4", 5, 0, 0)) == "[::1.2.3.4]:5"
    assert address_text(("::ffff:0:1", 5, 0, 0)) == "[::ffff:0:1]:5"


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("::ffff:c000:201", 5), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "20010db800010002"),
        (("2001:db8:1:2::", 443, 0, 0), "20010db800010002"),
        (("2001:db8:1:3::", 443, 0, 0), "20010db800010003"),
        (("::1", 5, 0, 0), "0000000000000000"),
        ("", "unix"),
        (b"/run/client", "unix"),
        (None, "unix"),
    ],
)
def test_networks(address: SocketAddress, whose: str) -> None:
    assert network(address) == whose


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        (("192.0.2.255", 5), "192.0.2.0/24"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.0/24"),
        (("::ffff:c000:201", 5), "192.0.2.0/24"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1::/48"),
        (("2001:db8:ffff:ffff::", 443, 0, 0), "2001:db8:ffff::/48"),
        (("fe80::1%eth0", 443, 0, 2), "fe80::/48"),
        (("::1", 5, 0, 0), "::/48"),
        (("::192.0.2.1", 5, 0, 0), "::/48"),
        ("", "unix"),
        (b"/run/client", "unix"),
        (None, "unix"),
    ],
)
def test_as_much_as_is_to_be_shown(address: SocketAddress, prefix: str) -> None:
    assert client_text(address, Clients.FULL) == address_text(address)
    assert client_text(address, Clients.PREFIX) == prefix
    assert client_text(address, Clients.NONE) == "none"
