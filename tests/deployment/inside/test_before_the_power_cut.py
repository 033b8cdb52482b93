"""What is there when the power is cut, which is at the end of this file: sockets and links."""

import pathlib
import socket

from manual import block
from support import (
    BLOG,
    DROP_INS,
    HERE,
    HOSTS,
    SHOP,
    Client,
    follow,
    make_host,
    run,
)

EARLY = """\
[Unit]
DefaultDependencies=no
After=local-fs.target
Before=sniproxy-stale.service
[Socket]
ListenStream=/srv/sniproxy/early.promise.example/tls-socket
[Install]
WantedBy=sysinit.target
"""


def test_a_web_server_serves() -> None:
    """nginx, as documented. It is enabled, as Debian's package does it, and so is Caddy, which has
    port 80 before it is configured."""
    run("systemctl", "disable", "--now", "caddy")
    follow(block("how-to/certificates.md", "Certificates by http-01", 0))
    live = pathlib.Path("/etc/letsencrypt/live/shop.example")
    live.mkdir(parents=True)
    for name in ("fullchain.pem", "privkey.pem"):
        (live / name).symlink_to(HERE / "server.pem")
    plain = block("how-to/certificates.md", "Certificates by http-01", 1)
    tls = block("how-to/certificates.md", "Certificates by http-01", 3)
    pathlib.Path("/etc/nginx/sites-enabled/shop.example").write_text(plain + tls)
    pathlib.Path("/var/www/shop/index.html").write_text("The shop")
    run("systemctl", "restart", "nginx")
    assert "deprecated" not in run("nginx", "-t")
    with Client("shop.example") as client:
        assert client.fetch("/") == b"The shop"


def test_sockets_and_links() -> None:
    """One host has its socket behind a link, one a link to nothing, one a socket that is made by
    systemd before anything else at the boot."""
    blog, shop = make_host(BLOG), make_host(SHOP)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(blog / "one"))
    (blog / "tls-socket").symlink_to("one")
    (shop / "tls-socket").symlink_to("nowhere")
    (HOSTS / "www.promise.example").symlink_to(BLOG)
    make_host("early.promise.example")
    (DROP_INS / "early.socket").write_text(EARLY)
    (DROP_INS / "early.service").write_text("[Service]\nExecStart=sleep infinity\n")
    run("systemctl", "enable", "early.socket")
