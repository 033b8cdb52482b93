"""Environment variables: what is understood, and what is complained of."""

import pytest

from sniproxy.log.log import Clients, Level
from sniproxy.process.settings import settings


def test_nothing_said_is_the_default() -> None:
    for environment in ({}, {"SNIPROXY_LOG": ""}):
        found = settings(environment)
        assert (found.level, found.complaints) == (Level.INFO, [])


@pytest.mark.parametrize(
    ("word", "level"),
    [("error", Level.ERROR), ("info", Level.INFO), ("connections", Level.CONNECTIONS)],
)
def test_levels(word: str, level: Level) -> None:
    found = settings({"SNIPROXY_LOG": word})
    assert (found.level, found.complaints) == (level, [])


@pytest.mark.parametrize("word", ["INFO", "debug", "2", " info", "\udcff"])
def test_a_bad_value_is_one_complaint_and_the_default(word: str) -> None:
    found = settings({"SNIPROXY_LOG": word})
    assert found.level == Level.INFO
    (complaint,) = found.complaints
    assert complaint.startswith(f"SNIPROXY_LOG={word}: expected error, info, connections")


@pytest.mark.parametrize(
    ("word", "clients"),
    [
        ("", Clients.FULL),
        ("full", Clients.FULL),
        ("prefix", Clients.PREFIX),
        ("none", Clients.NONE),
    ],
)
def test_clients_in_the_log(word: str, clients: Clients) -> None:
    found = settings({"SNIPROXY_LOG_CLIENTS": word})
    assert (found.clients, found.complaints) == (clients, [])
    assert settings({}).clients == Clients.FULL


@pytest.mark.parametrize("word", ["None", "prefixes", "0", " full", "\udcff"])
def test_who_misspells_it_has_no_client_in_the_log(word: str) -> None:
    """It was set since fewer addresses are wanted than by default."""
    found = settings({"SNIPROXY_LOG_CLIENTS": word})
    assert found.clients == Clients.NONE
    (complaint,) = found.complaints
    assert complaint == f"SNIPROXY_LOG_CLIENTS={word}: expected full, prefix, none; using none"


@pytest.mark.parametrize("word", ["1", "2", "064", "1024"])
def test_numbers_of_workers(word: str) -> None:
    found = settings({"SNIPROXY_WORKERS": word})
    assert (found.workers, found.complaints) == (int(word), [])


@pytest.mark.parametrize(
    "word", ["0", "-1", "1025", "many", "1.5", "+1", " 1", "٣", "9" * 5000, "\udcff"]
)
def test_bad_numbers_of_workers(word: str) -> None:
    found = settings({"SNIPROXY_WORKERS": word})
    assert found.workers is None
    (complaint,) = found.complaints
    assert complaint.startswith(f"SNIPROXY_WORKERS={word}: expected a number from 1 to 1024")


@pytest.mark.parametrize(("word", "isolate"), [("", None), ("0", False), ("1", True)])
def test_isolation(word: str, isolate: bool | None) -> None:
    found = settings({"SNIPROXY_ISOLATE": word})
    assert (found.isolate, found.complaints) == (isolate, [])


@pytest.mark.parametrize("word", ["yes", "2", " 1", "\udcff"])
def test_a_bad_isolation_is_as_if_it_was_not_said(word: str) -> None:
    found = settings({"SNIPROXY_ISOLATE": word})
    assert found.isolate is None
    (complaint,) = found.complaints
    assert complaint.startswith(f"SNIPROXY_ISOLATE={word}: expected 1 or 0")
