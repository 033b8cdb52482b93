"""docs/reference and the manual pages say what the code has, and nothing else."""

import ast
import pathlib
import re
import signal

import pytest

from sniproxy import commands
from sniproxy.dataplane import connections, counts, loops, pipes, relay, waiting
from sniproxy.dataplane.ending import CLIENT_LOST
from sniproxy.log import log, repeats, sinks
from sniproxy.parser import client_hello, host_name, proxy_header
from sniproxy.parser.alert import Alert
from sniproxy.process import server, service, settings
from sniproxy.process.signals import SIGNALS
from sniproxy.resolver import naming, reach
from sniproxy.status.metrics import metrics
from sniproxy.tools import check, listen, look
from tests.seen import Shown, whole
from tests.test_man_pages import PAGES, reasons, text_of, tool

ROOT = pathlib.Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
SOURCES = [path.read_text() for path in (ROOT / "sniproxy").rglob("*.py")]

OPTION = re.compile(r"(?<!\S)--[a-z-]*[a-z]")
TYPED = re.compile(
    r"\b(sniproxy(?:-(?:check|hostname|listen|status))?)((?:[ ]+(?:--[a-z-]*[a-z]|[^-\s`|;&]\S*))+)"
)
"""A command and what is typed behind it, up to where another one may begin."""

OF_TOOLS = {"PATH", "TERM"}
"""What only tools read. How a terminal and a shell are told is nobody's but theirs."""


def rows(page: str, heading: str | None = None) -> list[list[str]]:
    """Give the tables of a page, or of a section of it, without their heads, cell by cell."""
    text = (REFERENCE / page).read_text()
    if heading is not None:
        (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    tables = re.findall(r"^\|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def named(page: str, heading: str | None = None) -> list[str]:
    """Give what the first column has in code, in its order."""
    return [one for row in rows(page, heading) for one in re.findall(r"`([^`]+)`", row[0])]


def page(command: str) -> str:
    return text_of(next(path for path in PAGES if path.stem == command))


def test_environment() -> None:
    code = r'"((?:SNIPROXY|LISTEN|NOTIFY|JOURNAL)_[A-Z_]+)"|environ\.get\("(\w+)"'
    read = {one or other for text in SOURCES for one, other in re.findall(code, text)}
    told = named("environment.md")
    assert len(told) == len(set(told))
    # Python's own search of a command.
    assert set(told) == read | {"PATH"}
    in_page = re.findall(r"^\.It Ev (.+)$", page("sniproxy"), re.MULTILINE)
    assert {one for line in in_page for one in line.split(" , ")} == set(told) - OF_TOOLS
    assert {".Ev PATH", ".Ev LISTEN_FDS"} <= set(re.findall(r"\.Ev \w+", page("sniproxy-listen")))
    assert ".Ev TERM" in page("sniproxy-status")


def test_signals() -> None:
    ours = {one.name for one in SIGNALS} - {signal.SIGCHLD.name}
    assert set(named("signals.md")) == ours
    section = page("sniproxy").partition(".Sh SIGNALS")[2].partition(".Sh ")[0]
    told = re.findall(r"SIG\w+", " ".join(re.findall(r"^\.It Dv (.+)$", section, re.MULTILINE)))
    assert set(told) == ours


def statuses(command: str) -> list[int]:
    """What a command returns: a command that sniproxy-listen runs has statuses of its own."""
    return {
        "sniproxy": [0, commands.FAILURE, commands.USAGE_ERROR, service.RENEW],
        "sniproxy-hostname": [0, 1, commands.USAGE_ERROR],
        "sniproxy-check": [0, 1, check.CANNOT_TELL],
        "sniproxy-listen": [
            listen._FAILURE,
            commands.USAGE_ERROR,
            listen._NOT_EXECUTABLE,
            listen._NOT_FOUND,
        ],
        "sniproxy-status": [0, look._FAILURE, commands.USAGE_ERROR],
    }[command]


@pytest.mark.parametrize("command", [path.stem for path in PAGES])
def test_exit_statuses(command: str) -> None:
    told = [int(row[1]) for row in rows("exit-statuses.md") if row[0] == f"`{command}`"]
    assert told == statuses(command)
    section = page(command).partition(".Sh EXIT STATUS")[2].partition(".Sh ")[0]
    assert [int(one) for one in re.findall(r"^\.It (\d+)$", section, re.MULTILINE)] == told


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_options(path: pathlib.Path) -> None:
    options = set(OPTION.findall(tool(path, "--help")))
    told = [
        re.findall(r"`(--[a-z-]+)`", row[1])
        for row in rows("commands.md")
        if row[0] == f"`{path.stem}`"
    ]
    assert {one for cell in told for one in cell} == options - {"--help", "--version"}
    assert [] in told  # what the command is for


def test_documents_name_no_other_option() -> None:
    known = {path.stem: set(OPTION.findall(tool(path, "--help"))) for path in PAGES}
    named = [
        (command, option)
        for folder in (ROOT, ROOT / "docs", ROOT / ".github")
        for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
        for command, words in TYPED.findall(path.read_text())
        for option in OPTION.findall(words)
    ]
    assert len(named) > 20
    assert [one for one in named if one[1] not in known[one[0]]] == []


def test_alerts() -> None:
    told = {(row[0].strip("`"), int(row[1])) for row in rows("alerts.md")}
    assert told == {(one.name.lower(), one.value) for one in Alert}


def test_files_of_a_host() -> None:
    files = [naming.SOCKET, naming.SEND_PROXY_V2, naming.SEND_PROXY_V1, naming.ACME_SOCKET]
    assert named("files.md", "Of a host")[: len(files) + 1] == [*files, naming.WAIT_FOR_BACKEND]
    many = [f"{naming.WILDCARD}example.com", naming.DEFAULT, naming.NO_SERVER_NAME]
    assert named("files.md", "Directories that serve many") == many


NOBODY_COULD_LOOK = {"hosts_directory_hangs", "no_resolver", "no_answer"}
"""Said by who waits for an answer, and as a reason as well."""


LEVELS = {"error", "warning", "info", "reply", "reply_error"}


def events() -> set[str]:
    """Collect the events from where they are logged or reported."""
    found = set()
    for text in SOURCES:
        tree = ast.parse(text)
        words = {
            ast.unparse(node.targets[0]): node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            who = ast.unparse(node.func.value).rpartition(".")[2]
            if node.func.attr == "_report" or (who in ("log", "_log") and node.func.attr in LEVELS):
                event = ast.unparse(node.args[0])
                word = words.get(event, event.strip("'"))
                # A name that stands for what somebody else has said.
                found |= {str(word)} if event.isupper() or event.startswith("'") else set()
    # What workers tell their supervisor alone.
    found -= {server.BAR, server.PACKING}
    found |= {reach.OWNER_HANGS, reach.OWNER_SLOW} | NOBODY_COULD_LOOK
    return found - {""} | {"connection", "log_lines_dropped"}


def test_events() -> None:
    told = named("log.md", "Events")
    assert len(told) == len(set(told))
    assert set(told) == events()
    levels = {row[0].strip("`"): row[1] for row in rows("log.md", "Events")}
    for text in SOURCES:
        for level, event in re.findall(r'log\.(error|warning)\(\s*"(\w+)"', text):
            assert levels[event] == level, event


def test_reasons_and_endings() -> None:
    told = named("log.md", "Why a connection was refused")
    assert len(told) == len(set(told))
    assert set(told) == reasons() | NOBODY_COULD_LOOK
    of_both = {"closed", "open", "idle", "outbid", "barred", "stopped", "fault", "reset_by_backend"}
    of_one = {*CLIENT_LOST, "backend_passed_descriptors", "refused:WORD"}
    assert set(named("log.md", "Lines of connections")) == of_both | of_one


def test_metrics() -> None:
    text = whole(metrics(Shown(), classic=False)).decode()
    ends = {"counter": "_total", "info": "_info"}
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    in_code = {name + ends.get(kind, ""): kind for name, kind in kinds.items()}
    labels: dict[str, set[str]] = {}
    for name, inside in re.findall(r"^(\w+?)(?:_bucket)?(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    told = {row[0].strip("`"): (row[1], row[2]) for row in rows("metrics.md", "At /metrics")}
    assert {name: kind for name, (kind, _) in told.items()} == in_code
    for name, (_, cell) in told.items():
        assert set(re.findall(r"`(\w+)`", cell)) == labels[name], name


@pytest.mark.parametrize(
    ("what", "limits"),
    [
        ("a host name", [f"{host_name.MAX_LENGTH} bytes"]),
        ("the time for a hello", [f"{connections.PATIENCE:.0f} seconds"]),
        ("a hello", [f"{client_hello.MAX_WIRE_BYTES >> 20} MiB"]),
        ("a record of it", [f"2^{client_hello.MAX_FRAGMENT.bit_length() - 1} bytes"]),
        (
            "a PROXY header",
            [f"{proxy_header.MAX_VERSION_1} bytes", f"{proxy_header.MAX_VERSION_2 >> 10} KiB"],
        ),
        ("all hellos that are not complete", [f"{connections.MAX_KEPT >> 20} MiB"]),
        ("the time that a full accept queue", [f"{connections.PATIENCE:.0f} seconds"]),
        ("hellos of those who wait", [f"{waiting.MAX_KEPT >> 20} MiB"]),
        ("connections to one host", [f"{loops.MOST} in", f"for {loops.SHARE} descriptors"]),
        ("a half-closed connection", [f"{relay.HALF_CLOSED_IDLE / 60:.0f} minutes"]),
        ("a connection of which", [f"{relay.SEND_TIMEOUT / 60:.0f} minute"]),
        ("bytes that wait in", [f"{relay.BUFFER_SIZE >> 10} KiB", f"{pipes.PIPE_SIZE >> 20} MiB"]),
        ("pipes for that", [f"{pipes.MAX_PIPES},"]),
        ("a refused client", [f"{connections.FAREWELL_PATIENCE:.0f} second"]),
        ("workers", [f"{settings.MAX_WORKERS:,}"]),
        ("lines of warnings", [f"{repeats.MAX_ROWS},", f"hosts {repeats.MOST_OF_ONE}"]),
        ("bytes of the log", [f"{log.MAX_BACKLOG >> 10} KiB"]),
        ("a line of the log", [f"{sinks.MAX_LINE:,} bytes"]),
        ("hosts that are counted", [f"{counts.MOST_ROWS:,},", f"{counts.MOST_OF_ONE:,}"]),
    ],
)
def test_limits(what: str, limits: list[str]) -> None:
    told = [row[1] for row in rows("limits.md") if re.match(rf"{what}\b", row[0])]
    assert any(all(limit in cell for limit in limits) for cell in told), (told, limits)
