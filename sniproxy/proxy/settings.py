"""Tuning by environment variables: each has a safe default, and none changes how we proxy."""

import dataclasses
from collections.abc import Mapping

from sniproxy.proxy.log import Level


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for. ``complaints`` names each bad value, one line each."""

    level: Level = Level.INFO
    complaints: tuple[str, ...] = ()


def settings(environment: Mapping[str, str]) -> Settings:
    """Read SNIPROXY_LOG; a bad value becomes a complaint and the default."""
    defaults = Settings()
    complaints: list[str] = []

    level = defaults.level
    wish = environment.get("SNIPROXY_LOG", "")
    if wish:
        names = {name.lower(): value for name, value in Level.__members__.items()}
        if wish in names:
            level = names[wish]
        else:
            complaints.append(f"SNIPROXY_LOG={wish}: expected {', '.join(names)}; using info")

    return Settings(level, tuple(complaints))
