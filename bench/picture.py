"""The picture: six small bar charts in one SVG, drawn without any library.

It has its own background, so that it looks the same on light and dark pages.
"""

import dataclasses
from collections.abc import Iterator
from html import escape

from bench.candidates import (
    FLOOR,
    HAPROXY,
    HAPROXY_SPLICE,
    NGINX,
    OURS,
    OURS_SOURCE,
    SNIPROXY_C,
    SSLH,
)
from bench.report import Report, median


@dataclasses.dataclass(frozen=True, slots=True)
class Chart:
    title: str
    unit: str
    work: str
    figure: str
    digits: int
    divisor: float = 1.0


CHARTS = (
    Chart("A connection", "CPU µs", "connection", "cpu", 1),
    Chart("A round trip", "CPU µs", "round trip", "cpu", 1),
    Chart("A reply of 200 kB", "CPU µs", "reply of 200 kB", "cpu", 0),
    Chart("1 GB down", "CPU s", "download", "cpu", 2),
    Chart("1 GB up", "CPU s", "upload", "cpu", 2),
    Chart("An idle connection", "kB of memory", "memory", "idle", 1, 1e3),
)
SHOWN = (OURS, OURS_SOURCE, NGINX, HAPROXY, HAPROXY_SPLICE, SNIPROXY_C, SSLH)
LABELS = {SSLH: "sslh", OURS_SOURCE: "from source", HAPROXY_SPLICE: "HAProxy splice"}

COLUMNS = 3
WIDTH, MARGIN, GAP = 1000, 28, 30
HEAD, BAR, STEP, FOOT = 58, 15, 22, 26
LABEL, VALUE = 104, 40
"""Pixels: of the picture, of a bar and from one to the next, of what stands beside the bars."""

_OURS, _OURS_TOO, _OTHERS, _INK, _PALE, _PAPER, _FLOOR = (
    "#0b7a75",
    "#7fb8b5",
    "#b9bec6",
    "#1f2933",
    "#66707d",
    "#ffffff",
    "#d1495b",
)

STYLE = f"""<style>
text {{ font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: {_INK} }}
.title {{ font-size: 14px; font-weight: 600 }}
.head {{ font-size: 17px; font-weight: 600 }}
.unit, .note {{ fill: {_PALE} }}
.ours {{ font-weight: 700 }}
</style>"""


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{style and " " + style}>{escape(text)}</text>'


def _bars(report: Report, chart: Chart, x: float, y: float, width: float) -> Iterator[str]:
    found = [(n, median(report, chart.work, n, chart.figure)) for n in SHOWN]
    values = [(name, value / chart.divisor) for name, value in found if value is not None]
    if not values:
        return
    room = width - LABEL - VALUE
    scale = room / max(value for _, value in values)
    yield _text(x, y, chart.title, 'class="title"')
    yield _text(x + width, y, chart.unit, 'class="unit" text-anchor="end"')
    top = y + 14
    for number, (name, value) in enumerate(values):
        colour = {OURS: _OURS, OURS_SOURCE: _OURS_TOO}.get(name, _OTHERS)
        bar = top + number * STEP
        weight = ' class="ours"' if name == OURS else ""
        base = bar + BAR - 3
        yield _text(x + LABEL - 8, base, LABELS.get(name, name), f'text-anchor="end"{weight}')
        yield (
            f'<rect x="{x + LABEL:.1f}" y="{bar:.1f}" width="{max(value * scale, 1):.1f}" '
            f'height="{BAR}" rx="2" fill="{colour}"/>'
        )
        yield _text(
            x + LABEL + value * scale + 6, base, f"{value:.{chart.digits}f}", weight.strip()
        )
    floor = median(report, chart.work, FLOOR, chart.figure)
    if floor is not None and chart.work != "memory":
        at = x + LABEL + floor / chart.divisor * scale
        yield (
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 3:.1f}" '
            f'y2="{top + len(values) * STEP - 3:.1f}" stroke="{_FLOOR}" stroke-width="1.5" '
            f'stroke-dasharray="3 2"/>'
        )


def draw(report: Report) -> str:
    """Draw the charts for which there are figures."""
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    tall = 14 + len(SHOWN) * STEP + 44
    rows = -(-len(CHARTS) // COLUMNS)
    height = HEAD + rows * tall + FOOT
    title = "What one process of each proxy uses: less is better"
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" role="img"',
        f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" aria-label="{title}">',
        STYLE,
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{_PAPER}"/>',
        _text(MARGIN, 34, title, 'class="head"'),
    ]
    for number, chart in enumerate(CHARTS):
        x = MARGIN + number % COLUMNS * (width + GAP)
        y = HEAD + 18 + number // COLUMNS * tall
        parts += _bars(report, chart, x, y, width)
    at = height - 18
    parts.append(
        f'<line x1="{MARGIN}" x2="{MARGIN + 22}" y1="{at - 4}" y2="{at - 4}" stroke="{_FLOOR}" '
        'stroke-width="1.5" stroke-dasharray="3 2"/>'
    )
    note = (
        "the same system calls in C and nothing else. Medians of one run; sslh: to a TCP backend."
    )
    parts.append(_text(MARGIN + 30, at, note, 'class="note"'))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
