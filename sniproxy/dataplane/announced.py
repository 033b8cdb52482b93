"""An announced arrival: a client that comes through a balancer, which says in a PROXY header who it
is.

The header is required: that a socket is one for balancers says its name, never what arrives. It and
the hello have ``PATIENCE`` together. Balancers also look whether we are there, by connecting and
closing or with a header that announces nobody, or none but themselves: that is no client, and
nothing is told of it.
"""

from socket import SocketType

from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.state import Arriving, Carried
from sniproxy.parser.alert import Refusal
from sniproxy.parser.client_hello import ClientHelloParser, usual_host_name
from sniproxy.parser.proxy_header import IPV4_MAPPED, Header, SocketAddress, decode, version_2

_NOT_YET = ClientHelloParser()
"""In the place of a hello's parser while there is a header to be read: so nothing is taken for a
hello meanwhile, and what is read comes to ``_take``."""


class AnnouncedArrival(Arrival):
    """A client whose first bytes are to be a PROXY header."""

    __slots__ = ("_given",)

    announced = True

    def __init__(
        self,
        connections: Connections,
        client: SocketType,
        address: SocketAddress,
        accepted_at: float,
    ) -> None:
        # super() would cost as much as a look-up.
        Arrival.__init__(self, connections, client, address, accepted_at)
        self._parser = _NOT_YET
        self._given: Header | None = None

    # From one process to the next.

    def carried(self) -> Carried:
        given = self._given
        head = b"" if given is None else version_2(given.source, given.destination, "", given.tlvs)
        received = head + (self._received or b"")
        state = Arriving(self.address, self.accepted_at, len(received), announced=True)
        return Carried(state, [self._socket], received)

    # The header.

    def client_address(self) -> SocketAddress:
        given = self._given
        return self.address if given is None or given.client is None else given.source

    def local_address(self) -> SocketAddress:
        given = self._given
        if given is None or given.server is None:
            return super().local_address()
        return given.destination

    def _take(self, data: bytes | memoryview) -> bool:
        if self._given is not None:
            return self._take_hello(data)
        if not len(data):
            if self._received:
                self.refuse(Refusal(None, "bad_proxy_header"))
            else:
                self.end("no_hello")
            return False
        connections = self._connections
        received: bytes | bytearray | memoryview = data
        if self._received is not None:
            self._received += data
            received = self._received
        try:
            given = decode(received)
        except Refusal as refused:
            self.refuse(refused)
            return False
        if given is None:
            if self._received is None:
                self._received = bytearray(data)
            connections.keep(self, self._received.__sizeof__())
            return True
        self._given, self._received, self._parser = given, None, None
        rest = received[given.length :]
        view = connections.relay.view
        size = len(rest)
        if not size:
            connections.keep(self, given.length)
            return True
        if size > len(view):
            return self._take_hello(bytes(rest))
        # As if it had been read without a header: to the usual place, and its usual way.
        view[:size] = rest
        host = usual_host_name(connections.relay.buffer, size)
        if host is None:
            return self._take_hello(view[:size])
        self._decide(host, host, False, view[:size])
        return False

    def _take_hello(self, data: bytes | memoryview) -> bool:
        if not len(data) and self._is_check():
            self.end("no_hello")
            return False
        more = super()._take(data)
        if more and self.undecided and self._given:  # it may just have made room itself
            self._connections.keep(self, self.kept + self._given.length)
        return more

    def _header(self, version: int, tlvs: bytes = b"") -> bytes:
        given = self._given
        return super()._header(version, tlvs if given is None else given.tlvs)

    def bid(self) -> bool | None:
        return None if self._given is None else super().bid()

    # The end.

    def expire(self) -> None:
        if self._is_check():
            self.end("idle")
        elif self._given is None:
            self.refuse(Refusal(None, "no_proxy_header"))
        else:
            super().expire()

    def end(self, how: str) -> None:
        if self._is_check():
            self._let_go()
            self._connections.close(self._socket)
        else:
            super().end(how)

    def _is_check(self) -> bool:
        """Say whether nobody has been announced, nor has said anything, so far.

        HAProxy's check has no LOCAL in version 1: there it announces itself.
        """
        if not self.undecided or self._received:
            return False
        given = self._given
        return given is None or given.client is None or _same(given.source, self.address)


def _same(announced: SocketAddress, own: SocketAddress) -> bool:
    """Say whether a header's address is that of the connection itself, IPv4-mapped or not."""
    if not isinstance(announced, tuple) or not isinstance(own, tuple):
        return False
    return announced[1] == own[1] and announced[0] == own[0].removeprefix(IPV4_MAPPED)
