"""Who speaks with whom through the proxy: every client with every server, certificates verified."""

import pathlib
import re

import pytest

from tests.peers.conftest import World
from tests.peers.peers import CLIENTS, MARKS, SERVERS, TITLES, Missing, versions
from tests.peers.table import NO, NOT_TRIED, VERSION, YES, Cells, cell, compare, read, written

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "peers.md"


@pytest.mark.parametrize("server", list(SERVERS))
@pytest.mark.parametrize("client", list(CLIENTS))
def test_pair(world: World, client: str, server: str) -> None:
    pair = client, TITLES[server]
    # Whatever ends this before it has succeeded.
    world.outcomes[pair] = NO
    try:
        host = world.host(server)
        answer = CLIENTS[client](world.folder, host, world.port, world.ca)
    except Missing as missing:
        world.outcomes[pair] = cell(f"{NOT_TRIED}: {missing}")
        pytest.skip(str(missing))
    shown = re.search(MARKS[server], answer)
    assert shown is not None, answer
    world.outcomes[pair] = f"{YES}, TLS {shown[1]}"


def test_the_table_in_the_documentation(
    world: World, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(client, TITLES[server]) for client in CLIENTS for server in SERVERS]
    left_out = [pair for pair in pairs if pair not in world.outcomes]
    if left_out:
        pytest.fail(f"{len(left_out)} of {len(pairs)} pairs did not run: run all of tests/peers")
    found: Cells = {}
    version = versions(world.folder)
    for server in SERVERS:
        found[VERSION, TITLES[server]] = version[TITLES[server]]
    for client in CLIENTS:
        found[client, VERSION] = version[client]
        for server in SERVERS:
            found[client, TITLES[server]] = world.outcomes[client, TITLES[server]]
    if pytestconfig.getoption("--update-tables"):
        TABLE.write_text(written(TABLE.read_text(), found))
    wrong, different = compare(read(TABLE.read_text()), found)
    with capsys.disabled():
        print(*(f"\n{TABLE.name}: {line}" for line in different), sep="")
    assert not wrong, "\n".join(wrong)
