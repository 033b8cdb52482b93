"""The boot after a power cut: what was left is gone, what is alive is not, and all links stay."""

import os
import pathlib
import socket
from collections.abc import Iterator

import pytest
from manual import block
from support import (
    BLOG,
    DROP_INS,
    HOSTS,
    SHOP,
    Client,
    clear_hosts,
    eventually,
    follow,
    make_host,
    run,
    shown,
)

SITE = pathlib.Path("/etc/nginx/sites-enabled/shop.example")


@pytest.fixture(scope="module", autouse=True)
def cleared() -> Iterator[None]:
    """Leave neither hosts nor units to the other tests."""
    yield
    SITE.unlink()
    run("systemctl", "restart", "nginx")
    run("systemctl", "disable", "--now", "early.socket", "early.service")
    for name in ("early.socket", "early.service"):
        (DROP_INS / name).unlink()
    clear_hosts()


def test_the_web_server_serves_again() -> None:
    """nginx can't bind a socket whose file is there."""
    eventually("nginx runs", lambda: shown("ActiveState", "nginx.service") == "active")
    with Client("shop.example") as client:
        assert client.fetch("/") == b"The shop"


def test_links_stay_and_so_does_what_listens() -> None:
    assert shown("Result", "sniproxy-stale.service") == "success"
    assert os.listdir(HOSTS / BLOG) == ["tls-socket"]
    assert os.readlink(HOSTS / BLOG / "tls-socket") == "one"
    assert os.readlink(HOSTS / SHOP / "tls-socket") == "nowhere"
    assert os.readlink(HOSTS / "www.promise.example") == BLOG
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(HOSTS / "early.promise.example" / "tls-socket"))


def test_after_the_boot_it_removes_nothing() -> None:
    """Somebody may be about to listen."""
    path = make_host(BLOG) / "one"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        run("systemctl", "restart", "sniproxy-stale.service")
        bound.listen()
    assert path.is_socket()


def test_a_web_server_that_was_killed_alone_serves_again() -> None:
    follow(block("how-to/backend-restarts.md", "After a crash"))
    before = shown("MainPID", "nginx.service")
    run("systemctl", "kill", "-s", "KILL", "nginx")
    eventually("another one", lambda: shown("MainPID", "nginx.service") not in {before, "0"})
    eventually("it runs", lambda: shown("ActiveState", "nginx.service") == "active")
    with Client("shop.example") as client:
        assert client.fetch("/") == b"The shop"
