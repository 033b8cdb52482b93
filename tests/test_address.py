"""How addresses are written, and whom they are counted for."""

import pytest

from sniproxy.dataplane.address import address_text, network
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
