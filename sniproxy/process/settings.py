"""Tuning by environment variables: each has a safe default, and none changes how we proxy."""

from collections.abc import Mapping
from typing import NamedTuple

from sniproxy.log.log import Clients, Level

MAX_WORKERS = 1024
"""More than any machine has CPUs for; a slip of the pen must not fork without end."""


class Settings(NamedTuple):
    """What the environment asks for. ``workers`` is None for as many as there are CPUs for us;
    ``accept_proxy`` is of a socket on standard input; ``isolate`` is None for what the hosts
    directory asks for. ``complaints`` names each bad value, one line each."""

    level: Level
    clients: Clients
    workers: int | None
    accept_proxy: bool
    isolate: bool | None
    complaints: list[str]


def settings(environment: Mapping[str, str]) -> Settings:
    """Read SNIPROXY_LOG, _LOG_CLIENTS, _WORKERS, _ACCEPT_PROXY and _ISOLATE; a bad value becomes a
    complaint and the default, other than of _LOG_CLIENTS: who has set that wants less told than by
    default, and is told of none."""
    level, workers = Level.INFO, None
    complaints: list[str] = []

    wish = environment.get("SNIPROXY_LOG", "")
    if wish:
        names = {name.lower(): value for name, value in Level.__members__.items()}
        level = names.get(wish, level)
        if wish not in names:
            complaints.append(f"SNIPROXY_LOG={wish}: expected {', '.join(names)}; using info")

    wish = environment.get("SNIPROXY_LOG_CLIENTS", "") or Clients.FULL.value
    kinds = {kind.value: kind for kind in Clients}
    clients = kinds.get(wish, Clients.NONE)
    if wish not in kinds:
        complaints.append(f"SNIPROXY_LOG_CLIENTS={wish}: expected {', '.join(kinds)}; using none")

    wish = environment.get("SNIPROXY_WORKERS", "")
    if wish:
        # Only these digits: int() takes more, and would take an age over a million of them.
        if wish.isascii() and wish.isdecimal() and len(wish) < 6 and 1 <= int(wish) <= MAX_WORKERS:
            workers = int(wish)
        else:
            complaints.append(
                f"SNIPROXY_WORKERS={wish}: expected a number from 1 to {MAX_WORKERS}; "
                "using one for each CPU"
            )

    wish = environment.get("SNIPROXY_ACCEPT_PROXY", "")
    if wish not in ("", "0", "1"):
        complaints.append(f"SNIPROXY_ACCEPT_PROXY={wish}: expected 1 or 0; using 0")

    accept_proxy = wish == "1"

    wish = environment.get("SNIPROXY_ISOLATE", "")
    if wish not in ("", "0", "1"):
        complaints.append(
            f"SNIPROXY_ISOLATE={wish}: expected 1 or 0; using 1 where others may write to the "
            "hosts directory"
        )
    isolate = {"0": False, "1": True}.get(wish)

    return Settings(level, clients, workers, accept_proxy, isolate, complaints)
