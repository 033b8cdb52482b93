"""One server for many names, with a certificate for them, and clients that verify it."""

import re

import pytest
import trustme

from tests.peers.conftest import World
from tests.peers.peers import CLIENTS, MARKS, SERVERS, Missing, need, request, run

SERVER = "openssl"
PARENT = "many.example"
NAMES = ("any", "under_score")

OF_ANOTHER_MIND = {
    "Java": "unrecognized_name",
    "openssl s_client": "(?i)hostname mismatch",
    "Python ssl": "(?i)hostname mismatch",
}
"""What clients say of a label with an underscore below a wildcard. Java sends no name then; OpenSSL
gets to the server, and does not take its wildcard for such a label."""


@pytest.fixture(scope="module")
def many(world: World) -> None:
    """Have a server behind ``_.many.example``."""
    folder = world.folder / "many"
    folder.mkdir()
    identity = world.authority.issue_cert(f"*.{PARENT}", key_type=trustme.KeyType.RSA)
    pem = folder / "server.pem"
    identity.private_key_and_cert_chain_pem.write_to_path(str(pem))
    for label in NAMES:
        # Where it is looked for what key the browser is to trust.
        (world.folder / label).symlink_to("many")
    path = world.proxy.directory(f"_.{PARENT}") / "tls-socket"
    try:
        world.begin(folder, SERVERS[SERVER](folder, pem, path), path)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("label", NAMES)
@pytest.mark.parametrize("client", list(CLIENTS))
def test_a_name_below_a_wildcard(world: World, client: str, label: str) -> None:
    try:
        answer = CLIENTS[client](world.folder, f"{label}.{PARENT}", world.port, world.ca)
    except Missing as missing:
        pytest.skip(str(missing))
    expected = MARKS[SERVER]
    if label == NAMES[1]:
        expected = OF_ANOTHER_MIND.get(client, expected)
    assert re.search(expected, answer), answer


@pytest.mark.usefixtures("many")
def test_a_name_with_a_dot_at_its_end(world: World) -> None:
    """OpenSSL sends it as it was typed."""
    try:
        program = need("openssl", "openssl")
    except Missing as missing:
        pytest.skip(str(missing))
    command = [program, "s_client", "-connect", f"127.0.0.1:{world.port}", "-quiet", "-ign_eof"]
    command += ["-servername", f"Any.{PARENT}.", "-CAfile", str(world.ca), "-verify_return_error"]
    answer = run([*command, "-verify_hostname", f"any.{PARENT}"], request(f"any.{PARENT}"))
    assert re.search(MARKS[SERVER], answer), answer
