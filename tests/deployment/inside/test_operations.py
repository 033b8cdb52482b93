"""The operations manual: what it says to type is typed here. (Users and addresses: elsewhere.)"""

import pathlib
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from backend import serve, server_context
from support import (
    DROP_INS,
    HERE,
    HOSTS,
    SHOP,
    Client,
    ask,
    documented,
    eventually,
    follow,
    journal,
    make_host,
    run,
    shown,
)

ACME = "https://localhost:14000/dir"

PEBBLE = """{"pebble": {
    "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
    "certificate": "/opt/inside/server.pem", "privateKey": "/opt/inside/server.pem",
    "httpPort": 1, "tlsPort": 443
}}"""
"""An authority for tests, to which only tls-alpn-01 can prove anything: nothing listens on 1."""


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Iterator[None]:
    """A certificate authority on localhost; its root becomes ``root.pem``."""
    configuration = tmp_path / "pebble.json"
    configuration.write_text(PEBBLE)
    pathlib.Path("/etc/hosts").write_text("127.0.0.1 localhost blog.example\n")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["pebble", "-config", configuration], stdout=log, stderr=log)
    eventually("the authority answers", answers)
    with Client("localhost", port=15000) as client:
        (HERE / "root.pem").write_bytes(client.fetch("/roots/0"))
    yield
    process.kill()
    process.wait()


def answers() -> bool:
    try:
        Client("localhost", port=15000).close()
    except ConnectionRefusedError:
        return False
    return True


def test_from_nothing_to_a_served_name(authority: None, proxy: None) -> None:
    run("systemctl", "disable", "--now", "sniproxy.socket")
    _, commands = documented("From nothing to a served name")
    told = f"https_port 8443\n\tacme_ca {ACME}\n\tacme_ca_root {HERE}/ca.pem\n"
    try:
        output = follow(commands.replace("https_port 8443\n", told))
        assert "ok   blog.example  accepts as caddy" in output
        eventually("a certificate", lambda: "certificate obtained" in journal("-u", "caddy"))
        with Client("blog.example", trusted="root.pem") as client:
            assert client.fetch("/") == b"Hello"
    finally:
        run("systemctl", "stop", "caddy")


def test_a_backend_on_tcp(proxy: None) -> None:
    (commands,) = documented("Backends that listen on TCP only")
    make_host(SHOP)
    context = server_context()

    def accept(listening: socket.socket) -> None:
        for _ in range(3):
            stream, _ = listening.accept()
            serve(stream, b"the shop", context)

    with socket.create_server(("127.0.0.1", 8444)) as listening:
        thread = threading.Thread(target=accept, args=(listening,))
        thread.start()
        try:
            follow(commands)
            assert [ask(SHOP) for _ in range(3)] == ["the shop"] * 3
            assert "ok" in run("sniproxy-check", "--user", "sniproxy", HOSTS)
        finally:
            run("systemctl", "disable", "--now", "shop.socket", "shop.service")
            for name in ("shop.socket", "shop.service"):
                (DROP_INS / name).unlink()
            thread.join()


def test_totals_by_signal(proxy: None) -> None:
    run("systemctl", "start", "sniproxy.service")
    eventually("it serves", lambda: "event=start" in journal("-u", "sniproxy", "-n", "3"))
    run("systemctl", "kill", "-s", "USR1", "--kill-whom=main", "sniproxy")
    eventually("the line", lambda: "event=totals" in journal("-u", "sniproxy", "-n", "3"))
    assert shown("ActiveState") == "active"
