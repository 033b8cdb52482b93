"""The page that shows ``status.json`` to people: one document, complete in itself.

It is a constant because the executable has no files. The policy lets a browser apply this style,
run this script and ask where the page came from, and nothing else, whatever may have slipped into
the document; and it forbids the script to make elements of text. All that was received is written
as text, and what is not printable ASCII in it is spelt out, so that it can't turn a line around.

The script asks, shows, and waits two seconds; in a tab that nobody sees it waits until somebody
does. What it keeps is bounded: two answers, five minutes of graphs, 200 rows of a table. Rows stay
and their texts change, so that a refresh takes away neither the focus nor a selection. Rates are
what two answers differ by, and begin anew where the proxy has (``started``) or a number fell.
"""

import base64
import hashlib

STYLE = r"""
:root {
  color-scheme: light dark;
  --ground: #ffffff; --text: #1b1f24; --quiet: #57606a; --line: #d0d7de; --edge: #767d86;
  --mark: #0b7a75; --bad: #b3261e; --on-bad: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15181c; --text: #e8eaed; --quiet: #a9b1ba; --line: #3a4048; --edge: #8b939c;
    --mark: #5fd0c8; --bad: #f2b8b5; --on-bad: #410e0b;
  }
}
body {
  margin: 0 auto; max-width: 75rem; padding: 1rem;
  background: var(--ground); color: var(--text); font: 1rem/1.4 system-ui, sans-serif;
}
header, .tools { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
h1, h2, p, dl, dd { margin: 0; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; }
section, details { margin-top: 1.5rem; }
summary h2 { display: inline; }
summary { cursor: pointer; }
dt, caption, #build, #moment { color: var(--quiet); }
#state { margin-right: auto; }
.failed #state {
  padding: .25rem .75rem; background: var(--bad); color: var(--on-bad); font-weight: bold;
}
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem; }
.pair { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.pair > * { flex: 1 1 auto; max-width: 100%; }
#graphs dd:nth-of-type(1) { font-size: 1.25rem; font-weight: bold; }
svg { display: block; width: 100%; height: 3rem; border-bottom: 1px solid var(--edge); }
path { fill: none; stroke: var(--mark); stroke-width: 2; vector-effect: non-scaling-stroke; }
button, input {
  font: inherit; color: inherit; background: none;
  border: 1px solid var(--edge); border-radius: .25rem; padding: .2rem .6rem;
}
button { cursor: pointer; }
button[aria-pressed=true] { background: var(--text); color: var(--ground); }
button[aria-disabled=true] { color: var(--quiet); border-style: dashed; cursor: default; }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
.scroll { overflow-x: auto; padding: .25rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid var(--line); text-align: left; }
tbody th { font-weight: normal; }
tbody th, td:not(.number) { min-width: 4rem; overflow-wrap: anywhere; }
thead th { padding: .2rem 0; vertical-align: bottom; }
th button { border: 0; padding: .25rem .5rem; font-weight: bold; text-align: inherit; }
.number { text-align: right; }
td.number { white-space: nowrap; }
th[aria-sort=ascending] button::after { content: "\a0▲" / ""; }
th[aria-sort=descending] button::after { content: "\a0▼" / ""; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
"""

BODY = """
<header>
<h1>sniproxy</h1>
<p id="build"></p>
<p id="state" role="status">Waiting for the first answer.</p>
<p id="moment"></p>
<button id="pause" type="button" aria-pressed="false">Pause</button>
</header>
<main>
<noscript><p>This page needs JavaScript. <a href="status.json">status.json</a> and
<a href="metrics">metrics</a> tell the same without.</p></noscript>
<p id="said" class="unseen" role="status"></p>
<section><h2>The last five minutes</h2><dl id="graphs" class="grid"></dl></section>
<section><h2>Hosts</h2>
<div class="tools"><label>Filter hosts <input id="hosts-filter" type="search"></label></div>
<div class="scroll"><table id="hosts"></table></div></section>
<details id="live"><summary><h2>Open connections</h2></summary>
<div class="tools">
<label>Filter connections <input id="connections-filter" type="search"></label>
<button id="first" type="button" aria-disabled="true">First page</button>
<button id="next" type="button" aria-disabled="true">Next page</button>
</div>
<div class="scroll"><table id="connections"></table></div></details>
<div class="pair">
<section><h2>Refused connections</h2>
<div class="scroll"><table id="refusals"></table></div></section>
<section><h2>Workers</h2>
<div class="scroll"><table id="workers"></table></div></section>
</div>
<section><h2>Since it started</h2><dl id="totals" class="grid"></dl></section>
</main>
"""

SCRIPT = r"""
const VERSION = 1;  // of the answers
const PAUSE = 2000, PATIENCE = 10000;  // milliseconds between two questions, and for an answer
const POINTS = 150, WINDOW = 300;  // of a graph, and the seconds that it shows
const SHORTEST = 1;  // seconds between two answers that a rate is taken of
const ROWS = 200;  // shown of a table
const PAGE = 1000;  // connections asked for at a time

const $ = id => document.getElementById(id);
const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
function make(name, parent, text = "", space = "http://www.w3.org/1999/xhtml") {
  const node = document.createElementNS(space, name);
  node.textContent = text;
  parent.append(node);
  return node;
}

// What is not known is null.
const known = format => value => value == null ? "\u2013" : format(value);
const digits = new Intl.NumberFormat("en", {maximumSignificantDigits: 3});
const count = known(new Intl.NumberFormat("en").format);
const rate = known(digits.format);
const bytes = known(value => {
  const power = Math.min(5, Math.floor(Math.log10(Math.max(1, value)) / 3));
  return `${digits.format(value / 1000 ** power)} ${["B", "kB", "MB", "GB", "TB", "PB"][power]}`;
});
const flow = known(value => `${bytes(value)}/s`);
const duration = known(seconds => {
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"], [0.001, "ms"]]
    .find(([size]) => seconds >= size) ?? [0.001, "ms"];
  return `${digits.format(seconds / size)} ${unit}`;
});
const moment = seconds => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const words = text => String(text ?? "").replace(/[^ -~]/gu,
  sign => `\\u{${sign.codePointAt(0).toString(16)}}`) || "\u2013";
const sum = numbers => numbers.reduce((one, other) => one + other, 0);
function most({count: all, buckets}) {
  const bucket = buckets.find(([, below]) => below >= 0.99 * all);
  return bucket && all ? duration(bucket[0]) : "\u2013";
}

class Table {
  // A column: its key in a row, its title, and how a value is written. The first names the row.
  constructor(id, noun, by, columns) {
    this.noun = noun;
    this.all = [];
    this.columns = columns.map(([key, title, format]) => ({key, title, format}));
    this.caption = make("caption", $(id));
    const row = make("tr", make("thead", $(id)));
    for (const column of this.columns) {
      column.head = make("th", row);
      column.head.scope = "col";
      column.head.classList.toggle("number", column.format !== words);
      const button = make("button", column.head, column.title);
      button.type = "button";
      button.addEventListener("click", () => {
        this.sort(column);
        this.render();
        say(`Sorted by ${column.title}, ${column.head.ariaSort}`);
      });
    }
    this.body = make("tbody", $(id));
    this.filter = $(`${id}-filter`);
    this.filter?.addEventListener("input", () => { this.render(); say(this.caption.textContent); });
    this.sort(this.columns.find(({key}) => key === by));
  }

  sort(column) {  // Numbers fall first, words rise; a second time it is the other way round.
    this.falling = column === this.by ? !this.falling : column.format !== words;
    this.by?.head.removeAttribute("aria-sort");
    this.by = column;
    column.head.ariaSort = this.falling ? "descending" : "ascending";
  }

  show(rows) {
    this.all = rows;
    this.render();
  }

  render() {
    const wanted = this.filter?.value.trim().toLowerCase() ?? "";
    const texts = this.columns.filter(({format}) => format === words);
    const kept = this.all.filter(
      row => !wanted || texts.some(({key}) => words(row[key]).toLowerCase().includes(wanted)));
    const compare = (one, other) => one < other ? -1 : Number(one > other);
    const by = key => (one, other) => compare(one[key] ?? -1, other[key] ?? -1);
    const [main, tie] = [by(this.by.key), by(this.columns[0].key)];
    kept.sort((one, other) => (this.falling ? -1 : 1) * main(one, other) || tie(one, other));
    const shown = kept.slice(0, ROWS);
    while (this.body.rows.length > shown.length) this.body.lastChild.remove();
    while (this.body.rows.length < shown.length) {
      const line = make("tr", this.body);
      this.columns.forEach(({format}, index) => {
        const cell = make(index ? "td" : "th", line);
        if (!index) cell.scope = "row";
        cell.classList.toggle("number", format !== words);
      });
    }
    shown.forEach((row, index) => {
      const {cells} = this.body.rows[index];
      this.columns.forEach(({key, format}, place) => write(cells[place], format(row[key])));
    });
    const more = kept.length - shown.length;
    write(this.caption, `${this.noun}: ${count(shown.length)}`
      + (shown.length < this.all.length ? ` of ${count(this.all.length)}` : "")
      + (more ? `; ${count(more)} more: filter or sort to see others` : ""));
  }
}

const hosts = new Table("hosts", "Hosts", "open", [
  ["host", "Host", words], ["open", "Open", count], ["rate", "Connections/s", rate],
  ["up", "From clients", flow], ["down", "To clients", flow],
  ["backend_faults", "Backend faults", count]]);
const connections = new Table("connections", "", "age", [
  ["client", "Client", words], ["host", "Host", words], ["state", "State", words],
  ["worker", "Worker", words], ["age", "Age", duration], ["idle", "Idle", duration],
  ["bytes_up", "From client", bytes], ["bytes_down", "To client", bytes]]);
const refusals = new Table("refusals", "Reasons", "count", [
  ["reason", "Reason", words], ["count", "Refused", count], ["rate", "Refused/s", rate]]);
const workers = new Table("workers", "Workers", "number", [
  ["number", "Worker", words], ["pid", "Process", words], ["open", "Open", count],
  ["descriptors", "Descriptors", count], ["descriptors_max", "Allowed", count],
  ["answers", "Answers", words]]);

class Graph {
  constructor(key, title, format) {
    Object.assign(this, {key, format});
    const group = make("div", $("graphs"));
    make("dt", group, title);
    this.now = make("dd", group);
    this.peak = make("dd", group);
    const space = "http://www.w3.org/2000/svg", picture = make("svg", group, "", space);
    picture.setAttribute("viewBox", `0 0 ${WINDOW} 100`);
    picture.setAttribute("preserveAspectRatio", "none");
    picture.setAttribute("aria-hidden", "true");  // the two lines above say it in words
    this.path = make("path", picture, "", space);
  }

  draw(points) {
    const {time, [this.key]: now} = points.at(-1);
    const seen = points.map(point => point[this.key]).filter(value => value != null);
    const peak = seen.length ? Math.max(...seen) : null;
    write(this.now, this.format(now));
    write(this.peak, `at most ${this.format(peak)}`);
    let line = "", pen = "M";
    for (const {time: then, [this.key]: value} of points) {
      const x = WINDOW - time + then, y = 96 - 92 * value / (peak || 1);
      if (value != null) line += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = value == null ? "M" : "L";
    }
    this.path.setAttribute("d", line);
  }
}

const graphs = [
  new Graph("connections", "Connections/s", rate), new Graph("open", "Open connections", count),
  new Graph("up", "From clients", flow), new Graph("down", "To clients", flow),
  new Graph("refused", "Refused/s", rate)];
let points = [], last = null;

function show(now) {
  if (now.open_connections) {
    following = now.next;
    connections.noun = `Page ${page}${following ? "" : ", the last"}`;
    connections.show(now.open_connections);
  }
  const same = last?.started === now.started, then = last ?? now;
  const seconds = same ? now.time - then.time : 0;
  if (same && seconds >= 0 && seconds < SHORTEST) return;
  const per = (value, before) => seconds > 0 && value >= before ? (value - before) / seconds : null;
  const refused = status => sum(Object.values(status.connections.refused));
  points = points.filter(({time}) => time < now.time && time >= now.time - WINDOW);
  points = [...points.slice(1 - POINTS), {
    time: now.time,
    open: now.connections.open,
    connections: per(now.connections.accepted, then.connections.accepted),
    up: per(now.bytes_up, then.bytes_up),
    down: per(now.bytes_down, then.bytes_down),
    refused: per(refused(now), refused(then)),
  }];
  graphs.forEach(graph => graph.draw(points));

  const before = new Map(then.hosts.map(host => [host.host, host]));
  hosts.show(now.hosts.map(host => {
    // One without a row had none of these before.
    const {connections = 0, bytes_up = 0, bytes_down = 0} = before.get(host.host) ?? {};
    return {...host, rate: per(host.connections, connections),
            up: per(host.bytes_up, bytes_up), down: per(host.bytes_down, bytes_down)};
  }));
  refusals.show(Object.entries(now.connections.refused).map(([reason, count]) => (
    {reason, count, rate: per(count, then.connections.refused[reason] ?? 0)})));
  workers.show(now.workers.map(worker => ({...worker, answers: worker.answered ? "yes" : "no"})));
  write($("build"), words(`${now.build.version} (${now.build.flavour})`));
  const totals = {
    "Running for": duration(now.time - now.started),
    "Listening on": words(now.listen.join(", ")),
    "Accepted": count(now.connections.accepted),
    "Adopted from the process before": count(now.connections.adopted),
    "Refused": count(refused(now)),
    "From clients": bytes(now.bytes_up),
    "To clients": bytes(now.bytes_down),
    "99 % of hellos within": most(now.hello_seconds),
    "99 % of backends reached within": most(now.backend_seconds),
    "Workers started anew": count(now.worker_restarts),
    "Log lines dropped": count(now.log_lines_dropped),
    "Isolated look-ups": now.isolate ? "yes" : "no",
  };
  for (const [index, [title, text]] of Object.entries(totals).entries()) {
    const group = $("totals").children[index] ?? make("div", $("totals"));
    write(group.children[0] ?? make("dt", group), title);
    write(group.children[1] ?? make("dd", group), text);
  }
  last = now;
}

const say = text => write($("said"), text);
let paused = false, failure = "", timer = 0, asked = new AbortController();
let after = "", following = null, page = 1;

function tell() {  // Only what is new is written, since it is read out.
  write($("state"), failure || (paused ? "Paused." : "Answering."));
  document.body.classList.toggle("failed", Boolean(failure));
  document.title = `${failure ? "No answer: " : ""}sniproxy ${location.host}`;
  $("pause").ariaPressed = String(paused);
  $("first").ariaDisabled = String(!after);
  $("next").ariaDisabled = String(!following);
}

async function refresh() {
  clearTimeout(timer);
  asked.abort();  // What is asked now is wanted, and no longer what was.
  const mine = asked = new AbortController();
  const late = setTimeout(() => mine.abort(), PATIENCE);
  let wish = "";
  if ($("live").open) {
    wish = `?connections=${PAGE}`;
    if (after) wish += `&after=${encodeURIComponent(after)}`;
  }
  let reason = "no connection";
  try {
    const answer = await fetch(`status.json${wish}`, {cache: "no-store", signal: mine.signal});
    reason = `status ${answer.status}`;
    if (answer.status < 500 && !answer.ok) turn("");  // perhaps it knows the page no more
    if (!answer.ok) throw new Error(reason);
    reason = "unreadable answer";
    const now = await answer.json();
    if (now.version > VERSION) reason = "it is newer than this page: reload";
    if (now.version !== VERSION) throw new Error(reason);
    show(now);
    write($("moment"), `as of ${moment(now.time)}`);
    failure = "";
  } catch {
    if (mine !== asked) return;
    if (mine.signal.aborted) reason = `none within ${PATIENCE / 1000} s`;
    failure = `The proxy does not answer (${reason}).`
      + (last ? ` What is shown is ${$("moment").textContent}.` : "");
  } finally {
    clearTimeout(late);
  }
  tell();
  if (!paused && !document.hidden) timer = setTimeout(refresh, PAUSE);
}

function turn(cursor) {  // to the page that a cursor begins: none, the first
  page = cursor ? page + 1 : 1;
  after = cursor;
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  tell();
  if (paused) clearTimeout(timer); else refresh();
});
$("live").addEventListener("toggle", () => { turn(""); refresh(); });
$("first").addEventListener("click", () => { if (after) { turn(""); refresh(); } });
$("next").addEventListener("click", () => { if (following) { turn(following); refresh(); } });
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) refresh();
});
refresh();
"""


def _source(text: str) -> str:
    """Name what may be applied or run by its hash, CSP Level 3, section 2.3.1."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>sniproxy</title>
<style>{STYLE}</style>
</head>
<body>{BODY}<script type="module">{SCRIPT}</script>
</body>
</html>
""".encode()
"""The answer to ``/``, as text/html; charset=utf-8."""

POLICY = (
    f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The value of Content-Security-Policy that goes with it."""
