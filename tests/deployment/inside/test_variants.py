"""The documented drop-in of several addresses."""

import pathlib
from collections.abc import Callable

import pytest
from manual import block
from support import (
    BLOG,
    DROP_INS,
    Backend,
    Client,
    Load,
    ask,
    follow,
    listening_inodes,
    make_host,
    run,
    shown,
)

pytestmark = pytest.mark.usefixtures("proxy")


@pytest.fixture
def several(proxy: None, backend_at: Callable[..., Backend]) -> pathlib.Path:
    """Two sockets, as documented."""
    follow(block("how-to/addresses.md", "Several addresses"))
    directory = make_host(BLOG)
    backend_at(directory / "tls-socket", "the blog")
    return directory


def test_each_address_is_served(several: pathlib.Path) -> None:
    assert len(listening_inodes()) == 2
    assert (ask(BLOG, "127.0.0.1"), ask(BLOG, "::1")) == ("the blog", "the blog")


def test_an_address_that_comes_later_is_served(several: pathlib.Path) -> None:
    late = "192.0.2.44"
    drop_in = DROP_INS / "sniproxy.socket.d" / "addresses.conf"
    text = drop_in.read_text()
    assert text.count("=0.0.0.0:") == 1
    drop_in.write_text(text.replace("=0.0.0.0:", f"={late}:"))
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "sniproxy.socket")
    run("ip", "address", "add", f"{late}/32", "dev", "lo")
    try:
        assert ask(BLOG, late) == "the blog"
    finally:
        run("ip", "address", "del", f"{late}/32", "dev", "lo")


def test_the_start_is_over_when_the_proxy_says_so(several: pathlib.Path) -> None:
    """Without READY=1, which has to come out of the jail, the start would never succeed."""
    run("systemctl", "start", "sniproxy.service")
    assert (shown("Type"), shown("ActiveState")) == ("notify", "active")


def test_a_restart_loses_no_connection_of_several_sockets(several: pathlib.Path) -> None:
    with Client(BLOG, "127.0.0.1") as four, Client(BLOG, "::1") as six, Load(BLOG) as load:
        assert (four.ask(), six.ask()) == ("the blog", "the blog")
        run("systemctl", "restart", "sniproxy.service")
        load.more()
        assert (four.ask(), six.ask()) == ("the blog", "the blog")
    assert shown("Result") == "success"


def test_the_drop_ins_leave_the_exposure_as_it_is(several: pathlib.Path) -> None:
    assessment = run("systemd-analyze", "security", "--no-pager", "sniproxy.service")
    level = assessment.rpartition("sniproxy.service: ")[2].split()[0]
    assert float(level) <= 0.3, assessment
