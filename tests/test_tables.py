"""What a person is shown of a statement."""

import pytest

from sniproxy.tools import tables
from sniproxy.tools.tables import (
    BY_AGE,
    BY_OPEN,
    CONNECTIONS,
    HOSTS,
    HOSTS_WATCHED,
    Table,
    amount,
    cut,
    duration,
    harmless,
    host_rows,
    totals,
)
from tests.status_stub import HOSTILE, connection, document, host


def test_every_text_is_printable_ascii() -> None:
    for name in HOSTILE:
        assert harmless(name).isascii()
        assert harmless(name).isprintable()
    assert harmless("a.example") == "a.example"
    assert harmless("\x1b\x9b\x7f\u202e\\\n") == r"\x1b\x9b\x7f\u202e\\" + r"\n"


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.5, "1.0 KiB"),
        (1024, "1.0 KiB"),
        (102_300, "99.9 KiB"),
        (102_400, "100 KiB"),
        (999 << 10, "999 KiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5.0 PiB"),
        (2**64 - 1, "16.0 EiB"),
        (2.0**64 / 0.001, "16000 EiB"),  # a rate, where somebody says that so little time is over
        (-3, "-3 B"),
    ],
)
def test_amounts(number: float, written: str) -> None:
    assert amount(number) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0.0s"),
        (12.34, "12.3s"),
        (60, "1m 00s"),
        (3599.9, "59m 59s"),
        (3600, "1h 00m"),
        (86399, "23h 59m"),
        (86400, "1d 00h"),
        (400 * 86400 + 5 * 3600, "400d 05h"),
        (-1, "-1.0s"),
        (2.0**64 * 0.999, "213290478352266d 16h"),
    ],
)
def test_durations(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_each_key_is_one_columns() -> None:
    for columns in (HOSTS, HOSTS_WATCHED, CONNECTIONS):
        keys = [column.key for column in columns]
        assert len(set(keys)) == len(keys)
        assert not set(keys) & set("qhcrb ")


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    rows = [host("a.example", open=5), host("long-name.example", bytes_down=3 << 30)]
    table = Table(HOSTS, rows, None)
    assert [table.head, *map(table.line, rows)] == [
        "host               open  accepted   up     down  faults",
        "a.example             5         0  0 B      0 B       0",
        "long-name.example     0         0  0 B  3.0 GiB       0",
    ]


def test_what_is_not_known() -> None:
    table = Table(CONNECTIONS, [], None)
    unknown = connection("", "", age=None, idle=None, bytes_up=0)
    assert table.line(unknown).split() == ["-", "-", "relaying", "0", "-", "-", "0", "B", "2", "B"]


def test_text_gives_way_in_a_narrow_terminal() -> None:
    row = connection("2001:db8:1234:5678:9abc:def0:1234:5678", "n" * 40)
    for width in (300, 110, 80, 75):
        line = Table(CONNECTIONS, [row], width).line(row)
        assert len(line) <= width
        assert line.endswith("1 B   2 B")
    assert "2001:db8:1234:5678:9abc:def0:1234:5678  " + "n" * 40 + "  " in Table(
        CONNECTIONS, [row], 300
    ).line(row)
    for width in (60, 50, 5, 1, 0):
        table = Table(CONNECTIONS, [row], width)
        assert len(table.line(row)) == len(cut(table.head, width)) == width
        assert not width or table.line(row).endswith("…")


def test_a_long_name_takes_no_room_from_who_reads_a_pipe() -> None:
    rows = [host("n" * 300), host("a.example")]
    long, short = map(Table(HOSTS, rows, None).line, rows)
    assert long.startswith("n" * 300 + "  ")
    assert len(short) < 110


def test_order() -> None:
    rows = [host("b", open=5), host("a", open=7), host("c", open=5)]
    names = [row["host"] for row in BY_OPEN.first(rows, None)]
    assert names == ["a", "b", "c"]
    assert [row["host"] for row in BY_OPEN.first(rows, 2)] == ["a", "b"]
    assert [row["host"] for row in BY_OPEN.first(rows, 2, reverse=True)] == ["b", "c"]
    assert [row["host"] for row in HOSTS[0].first(rows, 2)] == ["a", "b"]
    assert [row["host"] for row in HOSTS[0].first(rows, 2, reverse=True)] == ["c", "b"]
    ages = [connection(str(age), age=age) for age in (3, None, 0, 9)]
    assert [row["client"] for row in BY_AGE.first(ages, 4)] == ["9", "3", "0", "None"]


def test_rates() -> None:
    before = document(
        host("a", connections=10, bytes_up=1000),
        host("back", bytes_up=9),
        time=100.0,
    )
    now = document(
        host("new", connections=4),
        host("back", bytes_up=3),
        host("a", connections=15, bytes_up=3000),
        time=102.0,
    )
    fields = ("host", "connections_rate", "bytes_up_rate", "bytes_down_rate")
    rows = host_rows(now, before)
    assert [[row.get(field) for field in fields] for row in rows] == [
        ["a", 2.5, 1000, 0],
        ["back", 0, None, 0],  # it was begun anew
        ["new", 2, 0, 0],
    ]
    # No time has passed, or it went back.
    for time in (100.0, 99.0):
        (row,) = host_rows(document(host("a"), time=time), before)
        assert "bytes_up_rate" not in row


def test_totals() -> None:
    before = document(time=1764215998.123, bytes_up=0, bytes_down=1024)
    before["connections"] = before["connections"] | {"accepted": 95}
    now = document(worker_restarts=1)
    assert totals(now, None) == [
        "sniproxy 0.1.0 (plain) on [::]:443, running for 1h 40m",
        "10 open, 100 accepted, 0 adopted; 1.0 KiB up, 2.0 KiB down",
        "on average 5.6 ms to a hello, - to its backend; 0 log lines dropped",
        "7 refused: no_server_name 4, no_such_host 3",
        "workers (1 restarts): 0 has 10 open, 25 of 524288 descriptors",
    ]
    assert totals(now, before)[1] == (
        "10 open, 100 accepted (2.5/s), 0 adopted; 1.0 KiB up (500 B/s), 2.0 KiB down (512 B/s)"
    )
    # A proxy that was started anew has counts that are smaller.
    assert totals(before, now | {"time": 0.0})[1].count("/s") == 0
    silent = document(workers=[now["workers"][0] | {"answered": False}], listen=[])
    silent["connections"] = silent["connections"] | {"refused": {}}
    assert totals(silent, None)[0].endswith("on -, running for 1h 40m")
    assert totals(silent, None)[3:] == [
        "0 refused",
        "workers (0 restarts): 0 has 10 open, 25 of 524288 descriptors, silent",
    ]
    assert tables._count(2**53 + 1) == "9007199254740993"
