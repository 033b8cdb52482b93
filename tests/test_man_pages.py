"""The manual pages: they render without a warning, and know every option."""

import ast
import os
import pathlib
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys

import pytest

from sniproxy.commands import USAGE_ERROR
from sniproxy.dataplane.ending import CLIENT_LOST
from sniproxy.resolver import hosts, reach
from sniproxy.tools.tables import CONNECTIONS, HOSTS_WATCHED
from tests import status_stub

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "man").glob("*.[18]"))
SECTIONS = [
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "ENVIRONMENT",
    "FILES",
    "EXIT STATUS",
    "EXAMPLES",
    "SEE ALSO",
]
RENDERERS = {
    "groff": ["groff", "-mandoc", "-Tutf8", "-ww"],
    "mandoc": ["mandoc", "-Tlint", "-Wwarning"],
}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def tool(page: pathlib.Path, *arguments: str, status: int = 0) -> str:
    """Run the command that a page is about; give what it prints."""
    program = "import sys; from sniproxy.commands import main; sys.exit(main())"
    code = f"import sys; sys.argv[0] = {page.stem!r}; {program}"
    done = run([sys.executable, "-c", code, *arguments])
    assert done.returncode == status, done.stderr
    return done.stdout


def text_of(page: pathlib.Path) -> str:
    """Read the source of a page without its macros."""
    text = re.sub(r"\\\[u00([0-9A-F]{2})\]", lambda match: chr(int(match[1], 16)), page.read_text())
    return re.sub(r"\bFl Fl (\w)", r"--\1", text)


def test_there_is_a_page_for_each_command() -> None:
    assert [page.name for page in PAGES] == [
        "sniproxy-check.8",
        "sniproxy-hostname.1",
        "sniproxy-listen.8",
        "sniproxy-status.8",
        "sniproxy.8",
    ]


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_renders_without_a_warning(page: pathlib.Path, renderer: str) -> None:
    if shutil.which(renderer) is None:
        pytest.skip(f"{renderer} is missing: install {renderer}")
    done = run([*RENDERERS[renderer], str(page)])
    # What mandoc finds wrong goes to standard output, and groff puts the page there.
    told = done.stderr + (done.stdout if renderer == "mandoc" else "")
    assert (done.returncode, told) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_has_every_option_and_section(page: pathlib.Path) -> None:
    source, usage = text_of(page), tool(page, "--help")
    options = set(re.findall(r"(?<!\S)--[a-z]+", usage))
    assert {"--help", "--version"} <= options
    assert options == set(re.findall(r"^\.It (--[a-z]+)", source, re.MULTILINE))
    sections = re.findall(r"^\.Sh (.+)$", source, re.MULTILINE)
    assert set(SECTIONS) <= set(sections)
    # And the way to the page is told.
    assert re.search(rf"man {page.suffix[1:]} {page.stem}\b", usage)


def test_has_every_variable_signal_and_alert() -> None:
    page = text_of(next(page for page in PAGES if page.stem == "sniproxy"))
    usage = tool(next(page for page in PAGES if page.stem == "sniproxy"), "--help")
    for variable in re.findall(r"SNIPROXY_[A-Z]+", usage):
        assert f".It Ev {variable}" in page
    from sniproxy.parser.alert import Alert

    for alert in Alert:
        assert f".It Li {alert.name.lower()} Pq {alert.value}\n" in page
    for signal in ("SIGHUP", "SIGTERM", "SIGINT", "SIGUSR1"):
        assert re.search(rf"^\.It Dv .*{signal}", page, re.MULTILINE)
    assert f".It {USAGE_ERROR}\n" in page


def reasons() -> set[str]:
    """Collect the words for why a connection is refused, from where they arise."""
    words = {*hosts._UNKNOWN_HOST.values(), "no_such_host", reach.OWNER_HANGS, reach.OWNER_SLOW}
    for path in (ROOT / "sniproxy").glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            arguments: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "Refusal":
                    arguments = node.args[1:2]
                elif node.func.id == "Nameless":
                    arguments = node.args[:1]
                elif node.func.id == "_misfit":
                    words |= {f"{ast.literal_eval(node.args[0])}_does_not_fit"}
            elif (isinstance(node, ast.keyword) and node.arg == "reason") or (
                isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason"
            ):
                arguments = [node.value]
            words |= {
                one.value
                for argument in arguments
                if isinstance(argument, ast.Constant | ast.IfExp)
                for one in ast.walk(argument)
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
    return words


def test_has_every_reason_and_ending() -> None:
    page = text_of(next(page for page in PAGES if page.stem == "sniproxy"))
    told = set(re.findall(r"\w+", " ".join(re.findall(r"^\.It Li (.+)$", page, re.MULTILINE))))
    assert len(reasons()) > 20
    assert reasons() <= told, reasons() - told
    for how in {*CLIENT_LOST, "reset_by_backend", "closed", "idle", "outbid", "stopped", "fault"}:
        assert f".Li {how}" in page


def test_examples_of_names_are_right() -> None:
    page = next(page for page in PAGES if page.stem == "sniproxy-hostname")
    example = re.search(r"\$ sniproxy-hostname (.+)\n((?:[^$.].*\n)+)", text_of(page))
    assert example
    assert tool(page, *shlex.split(example[1])) == example[2]


def test_the_example_of_a_check_is_right(tmp_path: pathlib.Path) -> None:
    page = next(page for page in PAGES if page.stem == "sniproxy-check")
    example = re.search(r"# sniproxy-check .+\n((?:[^.].*\n)+)", text_of(page))
    assert example
    for host in ("blog.example", "shop.example"):
        (tmp_path / host).mkdir()
    (tmp_path / "blog.example" / "send-proxy-v2").touch()
    with socket.socket(socket.AF_UNIX) as blog, socket.socket(socket.AF_UNIX) as shop:
        blog.bind(f"{tmp_path}/blog.example/tls-socket")
        blog.listen()
        shop.bind(f"{tmp_path}/shop.example/tls-socket")
        printed = tool(page, str(tmp_path), status=1)
    assert printed == example[1].replace("www-data", pwd.getpwuid(os.geteuid()).pw_name)


def test_the_example_of_a_status_is_right(tmp_path: pathlib.Path) -> None:
    page = next(page for page in PAGES if page.stem == "sniproxy-status")
    example = re.search(r"\$ sniproxy-status\n((?:[^.].*\n|\n)+)", text_of(page))
    assert example
    hosts = [
        status_stub.host("shop.example"),
        status_stub.host("blog.example", open=5, bytes_down=3 << 20),
    ]
    said = status_stub.ok(status_stub.document(*hosts))
    with status_stub.stub(tmp_path / "status", lambda _: said):
        assert tool(page, "--socket", f"{tmp_path}/status") == example[1]


def test_the_keys_of_a_status_are_told() -> None:
    text = text_of(next(page for page in PAGES if page.stem == "sniproxy-status"))
    of_hosts, of_connections = text.partition("Others sort:")[2].split("of connections")
    for columns, told in ((HOSTS_WATCHED, of_hosts), (CONNECTIONS, of_connections)):
        assert re.findall(r"^\.Li (\w)\b", told, re.MULTILINE)[: len(columns)] == [
            column.key for column in columns
        ]


def test_the_line_for_inetd_is_the_one_that_is_tried() -> None:
    """tests/deployment runs chroot/inetd.conf: inetd knows no quotes, among other things."""
    tried = (ROOT / "chroot" / "inetd.conf").read_text().splitlines()
    page = text_of(next(page for page in PAGES if page.stem == "sniproxy"))
    for text in (page, (ROOT / "README.md").read_text()):
        (line,) = re.findall(r"^ *(https stream .*)$", text, re.MULTILINE)
        assert line in tried
