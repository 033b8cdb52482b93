"""How addresses are written."""

from sniproxy.dataplane.address import address_text


def test_addresses_of_clients() -> None:
    assert address_text(("1.2.3.4", 5)) == "1.2.3.4:5"
    assert address_text(("::1", 5, 0, 0)) == "[::1]:5"
    assert address_text("") == "unix"
    # Of a socket for both families.
    assert address_text(("::ffff:1.2.3.4", 5, 0, 0)) == "1.2.3.4:5"
    assert address_text(("::1.2.3.4", 5, 0, 0)) == "[::1.2.3.4]:5"
    assert address_text(("::ffff:0:1", 5, 0, 0)) == "[::ffff:0:1]:5"
