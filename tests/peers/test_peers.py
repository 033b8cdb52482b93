"""Who speaks with whom through the proxy: every client with every server, certificates verified."""

import pathlib

import pytest

from tests.peers.conftest import World
from tests.peers.peers import CLIENTS, MARKS, SERVERS, TITLES, Missing

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "peers.md"


@pytest.mark.parametrize("server", list(SERVERS))
@pytest.mark.parametrize("client", list(CLIENTS))
def test_pair(world: World, client: str, server: str) -> None:
    host = world.host(server)
    try:
        answer = CLIENTS[client](world.folder, host, world.port, world.ca)
    except Missing as missing:
        pytest.skip(str(missing))
    assert MARKS[server] in answer, answer


def table() -> str:
    """Write the table of what ``test_pair`` shows."""
    lines = [
        "# Who speaks with whom",
        "",
        "Each client asks each server by name through sniproxy, verifies the certificate for that",
        "name, and gets the page: `make test-peers` (`tests/peers`), one test a pair. Versions are",
        "those of Debian 12, rustls the newest. Apache and gnutls-serv listen on TCP only; socat",
        "stands between.",
        "",
        "| client | " + " | ".join(TITLES[server] for server in SERVERS) + " |",
        "|---" * (len(SERVERS) + 1) + "|",
    ]
    lines += [f"| {client} |" + " yes |" * len(SERVERS) for client in CLIENTS]
    return "\n".join(lines) + "\n"


def test_the_table_in_the_documentation(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--update-tables"):
        TABLE.write_text(table())
    assert TABLE.read_text() == table()
