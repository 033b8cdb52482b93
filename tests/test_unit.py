"""Which root directory the unit's files give."""

import os
import pathlib
from collections.abc import Callable

import pytest

from sniproxy.tools import unit
from sniproxy.tools.unit import service_settings

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file below places of the test's own."""
    places = tuple(str(tmp_path / place) for place in ("etc", "run", "lib"))
    monkeypatch.setattr(unit, "PLACES", places)

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_without_a_unit(write: Write) -> None:
    assert service_settings().get("RootDirectory") is None
    write("etc/sniproxy.service.d/a.conf", "[Service]\nRootDirectory=/srv/a\n")
    assert service_settings().get("RootDirectory") is None


def test_ours(write: Write) -> None:
    text = (pathlib.Path(__file__).parents[1] / "chroot" / "sniproxy.service").read_text()
    write("lib/sniproxy.service", text)
    said = service_settings()
    assert said["RootDirectory"] == "/srv/sniproxy"
    assert (said["User"], said["PrivateUsers"]) == ("sniproxy", "yes")


def test_the_first_file_counts_and_drop_ins_change_it(write: Write) -> None:
    write("lib/sniproxy.service", "[Unit]\nRootDirectory=/x\n[Service]\nRootDirectory=/srv/lib\n")
    assert service_settings().get("RootDirectory") == "/srv/lib"
    write("etc/sniproxy.service", "# RootDirectory=/x\n[Service]\n RootDirectory = /srv/etc \n")
    assert service_settings().get("RootDirectory") == "/srv/etc"
    write("lib/service.d/10-all.conf", "[Service]\nRootDirectory=/srv/all\n")
    assert service_settings().get("RootDirectory") == "/srv/all"
    write("lib/sniproxy.service.d/20-b.conf", "[Service]\nRootDirectory=/srv/b\n")
    write("run/sniproxy.service.d/10-a.conf", "[Service]\nRootDirectory=/srv/a\n")
    write("etc/sniproxy.service.d/30-c.txt", "[Service]\nRootDirectory=/srv/c\n")
    assert service_settings().get("RootDirectory") == "/srv/b"
    write("etc/sniproxy.service.d/20-b.conf", "[Service]\nRootDirectory=\n")
    assert service_settings().get("RootDirectory") is None
    write("etc/sniproxy.service.d/30-d.conf", "[Service]\nRootDirectory=\\\n  /srv/d\n")
    assert service_settings().get("RootDirectory") == "/srv/d"


def test_what_is_masked_does_not_count(write: Write, tmp_path: pathlib.Path) -> None:
    write("lib/sniproxy.service", "[Service]\nRootDirectory=/srv/lib\n")
    write("lib/sniproxy.service.d/a.conf", "[Service]\nRootDirectory=/srv/a\n")
    (tmp_path / "etc" / "sniproxy.service.d").mkdir(parents=True)
    (tmp_path / "etc" / "sniproxy.service.d" / "a.conf").symlink_to(os.devnull)
    assert service_settings().get("RootDirectory") == "/srv/lib"
    (tmp_path / "etc" / "sniproxy.service").symlink_to(os.devnull)
    assert service_settings().get("RootDirectory") is None


def test_files_that_cannot_be_read(write: Write, tmp_path: pathlib.Path) -> None:
    write("lib/sniproxy.service", "")
    (tmp_path / "lib" / "sniproxy.service").write_bytes(b"\xff\n[Service]\nRootDirectory=/srv/a\n")
    (tmp_path / "etc" / "sniproxy.service.d" / "a.conf").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sniproxy.service.d").touch()
    assert service_settings().get("RootDirectory") == "/srv/a"
