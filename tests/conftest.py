"""Options of the test run, and fixtures that several files use."""

import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Generator, Iterator

import pytest

from sniproxy.resolver.hosts import Hosts
from tests import covered, transcript
from tests.plane import Plane

NOT_APPLICABLE = "not applicable: "
"""Begins the reason of a skipped test that no package and no right would let run here."""

PROGRAM = "import sys; from sniproxy.commands import main; sys.exit(main())"


def pytest_configure(config: pytest.Config) -> None:
    """Let the programs that tests start be interrupted and hung up: a job in the background ignores
    that, or one of nohup(1), and they would inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if config.getoption("--covered"):
        import hypothesis  # an emulated machine has none

        # Lines that are traced take longer than an example may.
        hypothesis.settings.register_profile("covered", deadline=None)
        hypothesis.settings.load_profile("covered")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sniproxy",
        metavar="COMMAND",
        help="the sniproxy that the end-to-end tests start (default: this interpreter's)",
    )
    parser.addoption(
        "--full",
        action="store_true",
        help="attack at full size and length: make test-faults FULL=1",
    )
    parser.addoption(
        "--update-tables", action="store_true", help="write what tests make: tables, transcripts"
    )
    parser.addoption(
        "--covered",
        action="store_true",
        help="fail each file of tests that runs too little of the module that it is for",
    )
    parser.addoption(
        "--nothing-missing",
        action="store_true",
        help="fail each test that is skipped, unless its reason begins with: not applicable",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn skips into failures where everything must be there that a test asks for."""
    report = yield
    if (
        report.skipped
        and item.config.getoption("--nothing-missing")
        and isinstance(report.longrepr, tuple)
        and not report.longrepr[2].removeprefix("Skipped: ").startswith(NOT_APPLICABLE)
    ):
        report.outcome = "failed"
        report.longrepr = f"{report.longrepr[2]}: nothing may be missing, says --nothing-missing"
    return report


@pytest.fixture(scope="module", autouse=True)
def measured(
    request: pytest.FixtureRequest,
) -> Iterator[None]:
    """Have the tests of a module run enough of it, where somebody asks for that."""
    asked = request.config.getoption("--covered")
    tested = [
        one for one in covered.modules() if asked and covered.file_of_tests(one) == request.path
    ]
    if tested:
        with covered.measured(tested):
            yield
    else:
        yield


@pytest.fixture
def hosts_directory(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Enter a hosts directory, and leave it at the end."""
    before = os.open(".", os.O_PATH)
    (tmp_path / "hosts").mkdir()
    os.chdir(tmp_path / "hosts")
    yield tmp_path / "hosts"
    os.fchdir(before)
    os.close(before)


@pytest.fixture
def hosts(hosts_directory: pathlib.Path) -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.close()


@pytest.fixture
def plane(hosts_directory: pathlib.Path) -> Iterator[Plane]:
    """Have a data plane of the test's own, in a hosts directory that is entered for it."""
    made = Plane(hosts_directory.parent)
    yield made
    made.close()
    assert not made.faults


@pytest.fixture
def tools(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    """Give a folder with each tool as a file: scripts of the source, or links to the executable."""
    option: str | None = request.config.getoption("--sniproxy")
    words = shlex.split(option or "")
    if len(words) > 1:
        pytest.skip("not applicable: --sniproxy is no single file that has another name")
    folder = tmp_path / "ours"
    folder.mkdir()
    for tool in ("listen", "check", "hostname", "status"):
        path = folder / f"sniproxy-{tool}"
        if words:
            path.symlink_to(pathlib.Path(words[0]).resolve())
        else:
            path.write_text(f"#!{sys.executable} -P\n{PROGRAM}\n")
            path.chmod(0o755)
    return folder


@pytest.fixture
def play(
    request: pytest.FixtureRequest, tools: pathlib.Path, tmp_path: pathlib.Path
) -> Callable[[str], None]:
    """Compare a transcript with what is said now."""
    option = request.config.getoption

    def play(case: str) -> None:
        path = transcript.FOLDER / case
        expected = path.read_text()
        said = transcript.played(expected, tmp_path, tools, forked=not option("--sniproxy"))
        if option("--update-tables"):
            path.write_text(said)
        assert said == expected

    return play
