"""Notifications to the service manager, sd_notify(3)."""

import socket
from collections.abc import Mapping


def notify(state: str, environment: Mapping[str, str]) -> None:
    """Send one assignment such as ``READY=1`` to NOTIFY_SOCKET, if set. Failure does not matter."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
            manager.sendto(state.encode("ascii"), address)
    except (OSError, ValueError):
        pass
