"""Answers: which request is for which document."""

import re
import time

from sniproxy.status import page
from sniproxy.status.document import MOST_CONNECTIONS, document
from sniproxy.status.http import LAST_CHUNK, NOTHING, Refused, Request, chunk, head
from sniproxy.status.metrics import CLASSIC, OPEN_METRICS, metrics
from sniproxy.status.overview import Answered, Proxy, Step, Steps

_LIKED = re.compile(r"(text/plain|openmetrics)[^,]*?(?:;\s*q=([01](?:\.\d{0,3})?)\s*)?(?=,|$)")
_CURSOR = re.compile(r"([0-9]{1,6})\.([0-9]{1,9})")


def answer(proxy: Proxy, request: Request) -> Steps:
    """Give the answer to a request, head and all. Raises ``Refused`` before anything is given."""
    policy = NOTHING
    if request.path == "/metrics":
        # Prometheus says which of the two it likes; who does not say gets the standard.
        liked = {kind: float(q or 1) for kind, q in _LIKED.findall(request.accept.lower())}
        classic = liked.get("text/plain", 0) > liked.get("openmetrics", 0)
        kind, body = CLASSIC if classic else OPEN_METRICS, metrics(proxy, classic=classic)
    elif request.path == "/status.json":
        kind, body = "application/json", _document(proxy, request)
    elif request.path == "/":
        kind, body, policy = "text/html; charset=utf-8", _page(), page.POLICY
    else:
        raise Refused(404, "expected /, /metrics or /status.json")
    return _whole(request, head(200, kind, chunks=request.chunks, policy=policy), body)


def _whole(request: Request, first: bytes, body: Steps) -> Steps:
    yield first
    if request.method == "HEAD":
        return
    answered: Answered | None = None
    while True:
        try:
            step: Step = body.send(answered)
        except StopIteration:
            break
        if isinstance(step, bytes) and step and request.chunks:
            step = chunk(step)
        answered = yield step
    if request.chunks:
        yield LAST_CHUNK


def _document(proxy: Proxy, request: Request) -> Steps:
    wish = request.query.get("connections", "0")
    if not wish.isascii() or not wish.isdecimal() or len(wish) > 4 or int(wish) > MOST_CONNECTIONS:
        raise Refused(400, f"expected connections=NUMBER, at most {MOST_CONNECTIONS}")
    cursor = _CURSOR.fullmatch(request.query.get("after", "0.0"))
    if cursor is None:
        raise Refused(400, "expected after=CURSOR, as next was in the answer before")
    return document(proxy, time.time(), int(wish), (int(cursor[1]), int(cursor[2])))


def _page() -> Steps:
    yield page.PAGE
