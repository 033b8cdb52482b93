"""The page of the status, in Chromium, where a server plays the proxy's part."""

import base64
import hashlib
import http.server
import json
import math
import pathlib
import random
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sniproxy.status.page import PAGE, POLICY
from tests.browser import Browser, Tab, started
from tests.end_to_end.harness import wait_until

PICTURE = pathlib.Path(__file__).parent.parent / "docs" / "explanation" / "status.png"
BEGIN = 1764216000
"""12:00 less eight hours, UTC."""

Document = dict[str, Any]
Question = dict[str, str]

HOSTILE = [
    "<img src=x onerror=alert(1)>.example",
    "</script><script>alert(2)</script>",
    "</td></table><svg onload=alert(3)>",
    "\u202emoc.knab\u202c.example",
    "javascript:alert(4)",
    "${alert(5)}",
    "__proto__",
    "\x1b[2Jescape\x00",
    "long." * 60,
    "unbroken" * 38,
]


TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
OUT_OF_SIGHT = "[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)"
"""Whether one must scroll to the side to see a column of a table."""


def row(host: str, open_: int = 0, connections: int = 0) -> Document:
    rest = dict.fromkeys(("bytes_up", "bytes_down", "backend_faults"), 0)
    return {"host": host, "open": open_, "connections": connections, **rest}


def connection(number: int, host: str = "a.example") -> Document:
    return {
        "client": f"192.0.2.{number}:4711",
        "host": host,
        "state": "relaying",
        "worker": 1,
        "age": 10.0 + number,
        "idle": None,
        "bytes_up": 1000 * number,
        "bytes_down": 5,
    }


def document(number: int = 0) -> Document:
    """Give what the proxy says two seconds after another: each comes with a time of its own."""
    return {
        "version": 1,
        "time": BEGIN + 2 * number,
        "started": BEGIN - 3600,
        "build": {"version": "0.1.0", "flavour": "plain"},
        "listen": ["[::]:443", "192.0.2.1:443"],
        "isolate": False,
        "workers": [
            {
                "number": worker,
                "pid": 4000 + worker,
                "open": 5,
                "descriptors": 25,
                "descriptors_max": 524288,
                "answered": worker == 0,
            }
            for worker in range(2)
        ],
        "worker_restarts": 0,
        "connections": {
            "accepted": 1000 + 20 * number,
            "adopted": 7,
            "open": 10 + number,
            "refused": {"no_such_host": 30 + number, "no_backend": 4},
        },
        "bytes_up": 10**6 + 3000 * number,
        "bytes_down": 10**9 + 5_000_000 * number,
        "hello_seconds": {"count": 100, "sum": 0.5, "buckets": [[0.001, 80], [0.0025, 99]]},
        "backend_seconds": {"count": 100, "sum": 9.0, "buckets": [[0.001, 80]]},
        "log_lines_dropped": 0,
        "hosts": [
            row("a.example", 3, 500 + 10 * number),
            row("_.example.com", 6, 400 + 2 * number),
            row("b.example", 1, 100),
        ],
    }


class Server:
    """Serves the page below a prefix, as behind another server, and what a test has it answer."""

    def __init__(self) -> None:
        self.answer: Callable[[Question], Document | bytes | int] = lambda _: document()
        """What to say to a question: a document, any bytes, or a status alone."""
        self.asked: list[Question] = []
        self.strangers: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/some/where/"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        answer: Document | bytes | int = 404
        kind = "application/json"
        if path == "/some/where/":
            answer, kind = PAGE, "text/html; charset=utf-8"
        elif path == "/some/where/status.json":
            question = dict(urllib.parse.parse_qsl(query, strict_parsing=bool(query)))
            self.asked.append(question)
            answer = self.answer(question)
        else:
            self.strangers.append(path)
        status, body = (answer, b"busy\n") if isinstance(answer, int) else (200, answer)
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Security-Policy", POLICY)
        request.end_headers()
        request.wfile.write(body)

    def die(self) -> None:
        """Be there no more; the port is refused."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def count(self) -> None:
        """Answer each question by the next document."""
        self.answer = lambda _: document(len(self.asked))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.die()


class Page(Tab):
    """A tab with the page in it."""

    excused = "nothing"
    """The source of complaints that a test provokes, a regular expression."""

    def __init__(self, browser: Browser, server: Server) -> None:
        super().__init__(browser)
        self.server = server
        self.resize(1200, 1000)

    def start(self, first: Document) -> None:
        """Open the page, and pause it where it has shown a first answer."""
        self.server.answer = lambda _: first
        self.open(self.server.url)
        self.until_text("#state", "Answering.")
        self.click("#pause")

    def show(self, answer: Document | bytes | int) -> None:
        """Have it ask once, and wait for a document until it is shown; it is paused as before."""
        self.server.answer = lambda _: answer
        self.ask("pause.click(), pause.click()")
        if isinstance(answer, dict) and answer.get("version") == 1 and "time" in answer:
            self.until_shown((answer["time"] - BEGIN) // 2)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.ask(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
        )
        return found

    def text(self, selector: str) -> str:
        (only,) = self.texts(selector)
        return only

    def rows(self, table: str) -> list[list[str]]:
        found: list[list[str]] = self.ask(
            f"[...document.querySelector('#{table} tbody').rows]"
            ".map(row => [...row.cells].map(cell => cell.textContent))"
        )
        return found

    def column(self, table: str, place: int = 0) -> list[str]:
        return [cells[place] for cells in self.rows(table)]

    def facts(self, part: str) -> dict[str, list[str]]:
        groups: list[list[str]] = self.ask(
            f"[...document.querySelectorAll('#{part} > div')]"
            ".map(group => [...group.querySelectorAll('dt, dd')].map(e => e.textContent))"
        )
        return {title: values for title, *values in groups}

    def line(self, place: int) -> str:
        """Give the line that a graph draws, as SVG writes it."""
        drawn: str = self.ask(f"document.querySelectorAll('path')[{place}].getAttribute('d')")
        return drawn

    def until_text(self, selector: str, part: str) -> None:
        self.until(
            f"document.querySelector({json.dumps(selector)})"
            f".textContent.includes({json.dumps(part)})"
        )

    def until_shown(self, number: int) -> None:
        """Wait until a document of that number, or a later one, is shown."""
        minutes, seconds = divmod(2 * number, 60)
        self.until(f"moment.textContent >= 'as of 04:{minutes:02}:{seconds:02}'")

    def click(self, selector: str) -> None:
        self.ask(f"document.querySelector({json.dumps(selector)}).click()")

    def tab_to(self, text: str) -> None:
        """Go by the keyboard to what has a text or a label."""
        for _ in range(60):
            self.press("Tab")
            named = self.ask(
                "(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim()"
            )
            if named == text:
                return
        pytest.fail(f"the keyboard never comes to {text}")


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page, not opened yet. At the end nothing was complained of, and nothing else asked for."""
    made = Page(browser, server)
    yield made
    excused = re.compile(f'"source": "({made.excused})"')
    complaints = [text for text in made.complaints() if not excused.search(text)]
    made.close()
    assert not complaints
    assert not server.strangers


def test_it_is_whole_and_small() -> None:
    text = PAGE.decode()
    assert len(PAGE) < 20_000
    assert set(re.findall(r"[a-z]+://[^\"']+", text)) == {
        "http://www.w3.org/1999/xhtml",
        "http://www.w3.org/2000/svg",
    }
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|url\(", text)
    # Whoever wants less motion has it: there is none.
    assert not re.findall("animation|transition|@keyframes|scroll-behavior", text)


def test_the_policy_names_this_style_and_this_script_and_nothing_else() -> None:
    directives = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>".encode(), PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert directives.pop(directive) == f"'sha256-{digest}'"
    assert directives.pop("connect-src") == "'self'"
    assert directives.pop("require-trusted-types-for") == "'script'"
    assert directives == dict.fromkeys(
        ["default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"], "'none'"
    )


def test_what_the_proxy_says_is_shown(page: Page) -> None:
    page.start(document(0))
    page.show(document(1))
    assert page.text("#build") == "0.1.0 (plain)"
    assert page.facts("graphs") == {
        "Connections/s": ["10", "at most 10"],
        "Open connections": ["11", "at most 11"],
        "From clients": ["1.5 kB/s", "at most 1.5 kB/s"],
        "To clients": ["2.5 MB/s", "at most 2.5 MB/s"],
        "Refused/s": ["0.5", "at most 0.5"],
    }
    assert page.rows("hosts") == [
        ["_.example.com", "6", "1", "0 B/s", "0 B/s", "0"],
        ["a.example", "3", "5", "0 B/s", "0 B/s", "0"],
        ["b.example", "1", "0", "0 B/s", "0 B/s", "0"],
    ]
    assert page.rows("refusals") == [["no_such_host", "31", "0.5"], ["no_backend", "4", "0"]]
    assert page.rows("workers") == [
        ["0", "4000", "5", "25", "524,288", "yes"],
        ["1", "4001", "5", "25", "524,288", "no"],
    ]
    facts = page.facts("totals")
    assert facts["Running for"] == ["1 h"]
    assert facts["Listening on"] == ["[::]:443, 192.0.2.1:443"]
    assert facts["Accepted"] == ["1,020"]
    assert facts["To clients"] == ["1.01 GB"]
    assert facts["99 % of hellos within"] == ["2.5 ms"]
    assert facts["99 % of backends reached within"] == ["–"]
    assert not any(page.server.asked), "connections only where somebody looks at them"


def test_it_refreshes_by_itself_and_says_nothing(page: Page, server: Server) -> None:
    """To who listens, that is: what is read out changes only with the state."""
    server.count()
    page.open(server.url)
    page.until_text("#state", "Answering.")
    page.ask(
        "told = 0; for (const one of document.querySelectorAll('[role=status]'))"
        "new MutationObserver(() => ++told)"
        ".observe(one, {childList: true, characterData: true, subtree: true})"
    )
    page.until_shown(3)
    assert page.ask("told") == 0


def test_a_rate_is_taken_of_a_second_or_more(page: Page) -> None:
    """Otherwise a page of connections that is asked for in between would have one of nothing."""
    page.start(document(0))
    page.show(document(1))
    soon = document(7)
    soon["time"] = document(1)["time"] + 0.9
    soon["open_connections"], soon["next"] = [connection(1)], None
    page.show(soon)
    page.until("connections.tBodies[0].rows.length === 1")
    assert page.facts("graphs")["Connections/s"] == ["10", "at most 10"]
    page.show(document(2))
    assert page.facts("graphs")["Connections/s"] == ["10", "at most 10"]


def test_the_graph_is_drawn_over_time(page: Page) -> None:
    numbers = [0, 1, 2, 10, 140, 149]
    page.start(document(0))
    for number in numbers[1:]:
        page.show(document(number))
    # Open connections were 10 + number; the right edge is now, 300 s are its width.
    expected = [(300 - 2 * (149 - n), 96 - 92 * (10 + n) / 159) for n in numbers]
    drawn = re.findall(r"([\d.]+) ([\d.]+)", page.line(1))
    assert [(float(x), float(y)) for x, y in drawn] == [
        pytest.approx(point, abs=0.051) for point in expected
    ]
    page.show(document(151))
    assert page.line(1).count("L") == len(numbers) - 1, "the oldest has gone"


def test_hostile_names_are_inert(page: Page) -> None:
    told = document()
    told["hosts"] = [row(name, number) for number, name in enumerate(HOSTILE)]
    told["connections"]["refused"] = dict.fromkeys(HOSTILE, 1)
    told["build"]["version"] = HOSTILE[0]
    told["listen"] = [HOSTILE[0]]
    told["open_connections"] = [
        {**connection(number, name), "client": name, "state": name}
        for number, name in enumerate(HOSTILE)
    ]
    told["next"] = HOSTILE[0]
    page.start(told)
    page.click("summary")
    page.until("document.querySelector('#connections tbody tr')")
    shown = [re.sub("[^ -~]", lambda sign: f"\\u{{{ord(sign[0]):x}}}", name) for name in HOSTILE]
    assert page.column("hosts") == shown[::-1]
    assert sorted(page.column("refusals")) == sorted(shown)
    assert sorted(page.column("connections", 1)) == sorted(shown)
    assert page.text("#build") == f"{HOSTILE[0]} (plain)"
    assert page.ask("document.scripts.length") == 1
    assert page.ask("document.querySelectorAll('img, svg').length") == 5, "the graphs"
    # A long name makes its cell tall, and nothing wide.
    assert not page.ask(OUT_OF_SIGHT)
    page.click("#next")
    page.until_text("#connections caption", "Page 2")
    assert page.server.asked[-1] == {"connections": "1000", "after": HOSTILE[0]}


@pytest.mark.parametrize(
    ("deed", "directive"),
    [
        ("document.body.innerHTML = '<b>x</b>'", "require-trusted-types-for"),
        ("document.body.setAttribute('onclick', '1')", "require-trusted-types-for"),
        ("document.body.setAttribute('style', 'color: red')", "style-src-attr"),
        ("document.body.append(make('img', {src: '/x.png'}))", "img-src"),
        ("document.body.append(make('iframe', {src: '/x'}))", "frame-src"),
        ("document.body.append(make('style', {textContent: '* {}'}))", "style-src-elem"),
        ("fetch('http://127.0.0.1:1/').catch(() => 0)", "connect-src"),
    ],
)
def test_what_slipped_in_could_do_nothing(page: Page, deed: str, directive: str) -> None:
    page.excused = "security|javascript"
    page.start(document())
    told = page.ask(
        "new Promise(done => {"
        "  const make = (name, what) => Object.assign(document.createElement(name), what);"
        "  document.addEventListener('securitypolicyviolation',"
        "    event => done(event.effectiveDirective));"
        f" try {{ {deed} }} catch {{}}"
        "})"
    )
    assert told == directive


def test_sorting_by_keyboard_and_focus(page: Page) -> None:
    page.start(document(0))
    by = "#hosts [aria-sort]"
    assert page.text(by) == "Open"
    page.tab_to("Host")
    page.press("Enter")
    assert page.column("hosts") == ["_.example.com", "a.example", "b.example"]
    assert page.text(by) == "Host"
    assert page.text("#said") == "Sorted by Host, ascending"
    page.press(" ")
    assert page.column("hosts") == ["b.example", "a.example", "_.example.com"]
    assert page.ask(f"document.querySelector('{by}').ariaSort") == "descending"
    page.press("Tab", "Tab", "Enter")
    page.show(document(1))
    # Neither the order nor the focus nor a selection is lost where numbers change.
    page.ask("getSelection().selectAllChildren(document.querySelector('#hosts tbody th'))")
    page.show(document(2))
    assert page.column("hosts") == ["a.example", "_.example.com", "b.example"]
    assert page.column("hosts", 2) == ["5", "1", "0"]
    assert page.ask("document.activeElement.textContent") == "Connections/s"
    assert page.ask("getSelection().toString()") == "a.example"


def test_filtering(page: Page) -> None:
    page.start(document(0))
    page.tab_to("Filter hosts")
    page.type("B.EXAM")
    assert page.column("hosts") == ["b.example"]
    assert page.text("#hosts caption") == page.text("#said") == "Hosts: 1 of 3"
    page.show(document(1))
    assert page.column("hosts") == ["b.example"]
    assert page.ask("document.activeElement.value") == "B.EXAM"
    page.type("x")
    assert page.column("hosts") == []
    assert page.text("#hosts caption") == "Hosts: 0 of 3"


def test_two_thousand_hosts(page: Page) -> None:
    page.start({**document(), "hosts": [row(f"host-{n}.example", n % 1000) for n in range(2000)]})
    assert len(page.rows("hosts")) == 200
    assert page.column("hosts", 1)[:3] == ["999", "999", "998"]
    assert page.column("hosts")[:2] == ["host-1999.example", "host-999.example"]
    more = "Hosts: 200 of 2,000; 1,800 more: filter or sort to see others"
    assert page.text("#hosts caption") == more
    page.tab_to("Filter hosts")
    page.type("host-1000.")
    assert page.column("hosts") == ["host-1000.example"]


def test_counters_that_begin_anew(page: Page) -> None:
    told = [document(number) for number in range(6)]
    told[2]["bytes_up"] = told[2]["hosts"][0]["connections"] = 5
    told[4]["started"] = told[5]["started"] = told[4]["time"] - 1
    told[5]["hosts"].append(row("new.example", 9, 4))
    up, rates = [], []
    for number, one in enumerate(told):
        page.show(one) if number else page.start(one)
        up.append(page.facts("graphs")["From clients"][0])
        rates.append(dict(zip(page.column("hosts"), page.column("hosts", 2), strict=True)))
    assert [*up[:3], *up[4:]] == ["–", "1.5 kB/s", "–", "–", "1.5 kB/s"]
    assert [rate["a.example"] for rate in rates] == ["–", "5", "–", "263", "–", "5"]
    assert [rate["_.example.com"] for rate in rates] == ["–", "1", "1", "1", "–", "1"]
    assert rates[5]["new.example"] == "2"
    # The line is broken where a rate is not known.
    assert page.line(2).count("M") == 3


def test_a_proxy_that_does_not_answer(page: Page, server: Server) -> None:
    page.excused = "network"
    server.answer = lambda _: 503
    page.open(server.url)
    page.until("state.textContent === 'The proxy does not answer (status 503).'")
    page.start(document(0))
    for answer, reason in (
        (503, "status 503"),
        (b'{"version": 1, "time"', "unreadable answer"),
        (404, "status 404"),
        ({"version": 1}, "unreadable answer"),
        (b"null", "unreadable answer"),
        ({**document(1), "version": 2}, "it is newer than this page: reload"),
    ):
        page.show(answer)
        page.until_text("#state", f"The proxy does not answer ({reason}).")
        assert page.text("#state").endswith("What is shown is as of 04:00:00.")
        assert page.ask("document.title").startswith("No answer: sniproxy 127.0.0.1")
        assert page.ask("document.body.className") == "failed"
        assert len(page.rows("hosts")) == 3
    server.count()
    page.click("#pause")
    page.until_text("#state", "Answering.")
    assert page.ask("document.title").startswith("sniproxy 127.0.0.1")
    assert page.ask("document.body.className") == ""
    server.die()
    page.until_text("#state", "The proxy does not answer (no connection).")


def test_an_answer_that_never_comes(page: Page, server: Server) -> None:
    page.excused = "network"
    release = threading.Event()

    def wait(_: Question) -> Document:
        release.wait(60)
        return document()

    server.answer = wait
    page.hasten(20)
    page.open(server.url)
    page.until_text("#state", "The proxy does not answer (none within 10 s).")
    release.set()
    page.until_text("#state", "Answering.")


def test_pages_of_connections(page: Page, server: Server) -> None:
    page.excused = "network"
    cursors = {"": "0.10", "0.10": "1.20&x", "1.20&x": None}

    def answer(question: Question) -> Document | int:
        after = question.get("after", "")
        if after not in cursors:
            return 400
        told = document(len(server.asked))
        if "connections" in question:
            place = list(cursors).index(after)
            told["open_connections"] = [connection(10 * place + n) for n in range(3)]
            told["next"] = cursors[after]
        return told

    page.hasten(10)
    page.start(document())
    server.answer = answer
    page.tab_to("Open connections")
    page.press("Enter")
    page.until_text("#connections caption", "Page 1: 3")
    first = ["192.0.2.2:4711", "a.example", "relaying", "1", "12 s", "–", "2 kB", "5 B"]
    assert page.rows("connections")[0] == first
    page.tab_to("Next page")
    page.press("Enter")
    page.until_text("#connections caption", "Page 2: 3")
    page.press("Enter")
    page.until_text("#connections caption", "Page 3, the last: 3")
    # The end takes the focus from nobody, and this page is the one that is refreshed.
    page.press("Enter")
    page.until("document.activeElement === next && next.ariaDisabled === 'true'")
    page.click("#pause")
    page.until_shown(len(server.asked) + 2)
    assert server.asked[-1] == {"connections": "1000", "after": "1.20&x"}
    page.tab_to("Filter connections")
    page.type("2.21:")
    assert page.column("connections") == ["192.0.2.21:4711"]
    # A cursor that is no longer known leads back to the first page.
    del cursors["1.20&x"]
    page.until_text("#connections caption", "Page 1: 0 of 3")
    page.until_text("#state", "Answering.")
    page.click("summary")
    wait_until(lambda: server.asked[-1] == {})


def test_pause_and_hidden_tabs(page: Page, server: Server) -> None:
    server.count()
    page.hasten(20)
    page.open(server.url)

    def asks_no_more() -> bool:
        counts = [-1]
        for _ in range(10):
            # The page's timer is shorter; what it was asking may come in a little later.
            page.ask("new Promise(done => setTimeout(done, 4000))")
            counts.append(len(server.asked))
            if counts[-1] == counts[-2]:
                return True
        return False

    page.until_shown(3)
    page.tab_to("Pause")
    page.press(" ")
    assert asks_no_more()
    assert page.text("#state") == "Paused."
    assert page.ask("document.activeElement.ariaPressed") == "true"
    count = len(server.asked)
    page.ask("pause.click(), pause.click()")  # paused while it asks
    assert asks_no_more()
    assert len(server.asked) <= count + 1
    page.press(" ")
    page.until_shown(len(server.asked) + 2)
    assert page.text("#state") == "Answering."
    hide = (
        "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.ask(hide % "true")
    assert asks_no_more()
    page.ask(hide % "false")
    page.until_shown(len(server.asked) + 2)


CONTRASTS = """(() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = parts(color).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = node => {
    const color = getComputedStyle(node).backgroundColor;
    return (parts(color)[3] ?? 1) ? color : ground(node.parentElement);
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const style = getComputedStyle(node);
    const named = `${node.tagName} ${node.id} ${node.textContent.slice(0, 20)}`;
    if ([...node.childNodes].some(c => c.nodeType === 3 && c.data.trim()) &&
        !["SCRIPT", "NOSCRIPT"].includes(node.tagName))
      found.push([named, 4.5, ratio(style.color, ground(node))]);
    if (node.tagName === "path") found.push([named, 3, ratio(style.stroke, ground(node))]);
    if (["BUTTON", "INPUT", "SUMMARY"].includes(node.tagName)) {
      node.focus({focusVisible: true});
      const around = getComputedStyle(node);
      if (around.outlineStyle !== "solid" || parseFloat(around.outlineWidth) < 2)
        found.push([named, 3, 0]);
      found.push([named, 3, ratio(around.outlineColor, ground(node.parentElement))]);
      if (parseFloat(style.borderTopWidth))
        found.push([named, 3, ratio(style.borderTopColor, ground(node.parentElement))]);
    }
  }
  return found;
})()"""
"""Of texts, graphs, edges and the focus: which it is, the ratio that WCAG 2.2 wants, and ours."""


@pytest.mark.parametrize(("scheme", "darkest", "brightest"), [("light", 250, 255), ("dark", 0, 40)])
def test_colours(page: Page, scheme: str, darkest: int, brightest: int) -> None:
    page.excused = "network"
    told = {**document(), "open_connections": [connection(1)], "next": None}
    page.emulate(prefers_color_scheme=scheme)
    page.start(told)
    page.click("summary")
    page.until("document.querySelector('#connections tbody tr')")
    contrasts = page.ask(CONTRASTS)
    page.show(503)
    page.until_text("#state", "does not answer")
    page.click("#pause")
    contrasts += page.ask(CONTRASTS)
    assert len(contrasts) > 200
    assert not [(what, wanted, ratio) for what, wanted, ratio in contrasts if ratio < wanted]
    colour = page.ask("getComputedStyle(document.body).backgroundColor")
    assert all(darkest <= int(part) <= brightest for part in re.findall(r"\d+", colour))


def test_what_assistive_technology_is_told(page: Page) -> None:
    page.start({**document(), "open_connections": [connection(1)], "next": "0.1"})
    page.click("summary")
    page.until("document.querySelector('#connections tbody tr')")
    tree = page.tree()
    roles = [node["role"] for node in tree]
    named = {"button", "searchbox", "table", "DisclosureTriangle", "columnheader", "rowheader"}
    assert not [
        node for node in tree if (node["role"] in named or "focusable" in node) and not node["name"]
    ]
    assert roles.count("banner") == roles.count("main") == 1
    assert [node["level"] for node in tree if node["role"] == "heading"] == [1, 2, 2, 2, 2, 2, 2]

    def names(role: str) -> list[str]:
        return sorted(node["name"] for node in tree if node["role"] == role)

    assert names("table") == ["Hosts: 3", "Page 1: 1", "Reasons: 2", "Workers: 2"]
    assert names("searchbox") == ["Filter connections", "Filter hosts"]
    assert roles.count("columnheader") == 6 + 8 + 3 + 6
    assert roles.count("rowheader") == 3 + 1 + 2 + 2
    # The arrows of the columns that tables are sorted by are for the eyes.
    assert {"Open", "Age", "Refused", "Worker"} < set(names("columnheader"))
    assert {node["live"] for node in tree if node["role"] == "status"} == {"polite"}
    (pause,) = [node for node in tree if node["name"] == "Pause" and node["role"] == "button"]
    assert pause["pressed"] == "true"
    assert page.ask("document.documentElement.lang") == "en"


def test_everything_is_come_to_by_the_keyboard(page: Page) -> None:
    page.start({**document(), "open_connections": [connection(1)], "next": "0.1"})
    page.click("summary")
    page.until("document.querySelector('#connections tbody tr')")
    every = "[...document.querySelectorAll('button, input, summary')]"
    count = page.ask(f"{every}.length")
    visited = []
    for _ in range(count):
        page.press("Tab")
        visited.append(page.ask(f"{every}.indexOf(document.activeElement)"))
    assert visited == list(range(count)), "in the order of the page"
    # Large enough for a finger, WCAG 2.2, 2.5.8.
    assert not page.ask(f"{every}.filter(e => e.getBoundingClientRect().height < 24).length")


def test_a_narrow_window(page: Page) -> None:
    page.resize(320, 600)
    told = {**document(), "hosts": [row(name) for name in HOSTILE]}
    page.start({**told, "open_connections": [connection(1)], "next": None})
    page.click("summary")
    page.until("document.querySelector('#connections tbody tr')")
    assert not page.ask(TOO_WIDE)


def test_memory_is_bounded(page: Page, server: Server) -> None:
    def answer(_: Question) -> Document:
        number = len(server.asked)
        told = {**document(), "time": BEGIN + number}
        # Each time there are others.
        told["hosts"] = [row(f"host-{number}-{n}.example") for n in range(200)]
        return told

    def sizes() -> tuple[int, int, int]:
        page.tell("HeapProfiler.collectGarbage")
        counters = page.tell("Memory.getDOMCounters")
        heap = page.tell("Runtime.getHeapUsage")["usedSize"]
        return counters["nodes"], counters["jsEventListeners"], heap

    server.answer = answer
    page.open(server.url)
    page.until_text("#state", "Answering.")
    refresh_often = """(async () => {
      for (let number = 0; number < 160; ++number) {
        const {promise, resolve} = Promise.withResolvers();
        const watch = new MutationObserver(resolve);
        watch.observe(moment, {childList: true});
        pause.click();
        pause.click();
        await promise;
        watch.disconnect();
      }
    })()"""
    page.ask(refresh_often)
    nodes, listeners, heap = sizes()
    page.ask(refresh_often)
    assert page.line(1).count("L") == 149
    nodes_later, listeners_later, heap_later = sizes()
    assert listeners_later == listeners
    # A node of each row, or each answer, would be many times this.
    assert nodes_later < nodes + 2000
    assert heap_later < heap + 1_000_000


def plausible(number: int, chance: random.Random, before: Document | None) -> Document:
    """Give what a proxy of some forums and shops may say four seconds after ``before``."""
    told = document(2 * number)
    names = ["www.shop.example", "_.forum.example", "mail.example", "git.example", "_default"]
    names += ["chat.example", "photos.example", "wiki.example", "blog.example"]
    hosts = before["hosts"] if before else [row(name) for name in names]
    told["hosts"] = []
    for place, host in enumerate(hosts):
        busy = 90 / (place + 1) ** 1.3 * (1 + 0.4 * math.sin(number / 14 + place))
        new = int(busy * chance.uniform(2, 4) + chance.random())
        told["hosts"].append(
            {
                "host": host["host"],
                "open": int(busy * 6 + chance.uniform(0, 4)),
                "connections": host["connections"] + new,
                "bytes_up": host["bytes_up"] + int(new * chance.uniform(2e3, 4e3)),
                "bytes_down": host["bytes_down"] + int(new * chance.uniform(3e4, 9e4)),
                "backend_faults": 3 if place == 5 else 0,
            }
        )
    told["open_connections"] = [
        {
            "client": f"198.51.100.{chance.randrange(1, 255)}:{chance.randrange(32768, 60999)}",
            "host": chance.choice(names),
            "state": state,
            "worker": chance.randrange(2),
            "age": 10 ** chance.uniform(0, 4),
            "idle": chance.uniform(0, 1),
            "bytes_up": int(10 ** chance.uniform(3, 5)),
            "bytes_down": int(10 ** chance.uniform(4, 8)),
        }
        for state in ("relaying", "relaying", "waiting", "relaying", "half_closed", "relaying")
    ]
    told["next"] = "0.7"
    sums = {
        key: sum(host[key] for host in told["hosts"]) for key in told["hosts"][0] if key != "host"
    }
    told["bytes_up"], told["bytes_down"] = sums["bytes_up"], sums["bytes_down"]
    refused = before["connections"]["refused"]["no_such_host"] if before else 900
    refused += chance.choice([0, 0, 1, 2, 9])
    told["connections"] = {
        "accepted": sums["connections"] + refused,
        "adopted": 412,
        "open": sums["open"],
        "refused": {"no_such_host": refused, "no_server_name": 58, "nothing_listens": 3},
    }
    for worker in told["workers"]:
        worker["open"] = sums["open"] // 2
        worker["descriptors"] = sums["open"] + 31
        worker["answered"] = True
    told["backend_seconds"]["buckets"] = [[0.001, 100]]
    return told


def test_the_picture_in_the_documentation(page: Page, request: pytest.FixtureRequest) -> None:
    """``make test PYTEST="tests/test_page.py --update-tables"`` takes it anew."""
    page.emulate(prefers_color_scheme="light")
    page.resize(1120, 800)
    chance = random.Random(17)
    told = plausible(0, chance, None)
    page.start(told)
    page.click("summary")
    for number in range(1, 75):
        told = plausible(number, chance, told)
        page.show(told)
    page.click("#pause")
    page.until("connections.tBodies[0].rows.length === 6 && state.textContent === 'Answering.'")
    assert not page.ask(OUT_OF_SIGHT)
    picture = page.picture()
    if request.config.getoption("--update-tables"):
        PICTURE.write_bytes(picture)
    for one in (picture, PICTURE.read_bytes()):
        assert one.startswith(b"\x89PNG")
        assert len(one) < 120_000
