"""The statement: what a status socket says of the proxy, and the form that it must have.

Whoever answers may be anybody. So what is shown of a document is checked here, once, and nothing
else of it is ever looked at.
"""

import json
import math
from typing import Any

from sniproxy.tools.output import escaped

VERSION = 1
"""Of the form; fields that are added to it do not change it."""

Document = dict[str, Any]

_LIMIT = 2.0**64
"""No number is as large: neither counts of 64 bits nor times."""

_LONGEST_WORDS = 200

_COUNTS = {"open": float, "connections": float, "bytes_up": float, "bytes_down": float}
_TIMES = {"count": float, "sum": float}
_WORKER = {"number": float, "pid": float, "open": float, "answered": bool}

_FORM: dict[Any, Any] = {
    "time": float,
    "started": float,
    "build": {"version": str, "flavour": str},
    "listen": [str],
    "workers": [_WORKER | {"descriptors": float, "descriptors_max": float}],
    "worker_restarts": float,
    "connections": {"accepted": float, "adopted": float, "open": float, "refused": {str: float}},
    "bytes_up": float,
    "bytes_down": float,
    "hello_seconds": _TIMES,
    "backend_seconds": _TIMES,
    "log_lines_dropped": float,
    "hosts": [_COUNTS | {"host": str, "backend_faults": float}],
}
"""What is shown, by name. ``float`` is any number, ``str`` for a name any name, a tuple of one form
that or null."""

_CONNECTION: dict[Any, Any] = {"client": str, "host": str, "state": str, "worker": float}
_CONNECTION |= {"age": (float,), "idle": (float,), "bytes_up": float, "bytes_down": float}
_PAGE: dict[Any, Any] = {"open_connections": [_CONNECTION], "next": (str,)}


class FormError(ValueError):
    """What was said is no statement; says why."""


def statement(text: bytes, *, connections: bool) -> Document:
    """Read a statement, with open connections or without. Raises FormError."""
    try:
        document = json.loads(text.decode("utf-8"), parse_float=_finite, parse_constant=_no_number)
        found = document.get("version") if isinstance(document, dict) else VERSION
        if found != VERSION:
            raise FormError(f"it has version {escaped(str(found))}, and {VERSION} is known here")
        _demand(document, _FORM | _PAGE if connections else _FORM, "it")
    except RecursionError:
        raise FormError("it is nested too deeply") from None
    except ValueError as error:
        # It may have names in it, of any length and script.
        words = escaped(str(error)[:_LONGEST_WORDS]).encode("ascii", "backslashreplace")
        raise FormError(words.decode()[:_LONGEST_WORDS]) from None
    return document  # type: ignore[no-any-return]


def _finite(digits: str) -> float:
    """Read a number that can be written again: JSON has no infinity."""
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


def _no_number(word: str) -> float:
    raise FormError(f"{word} is no number")


def _demand(value: Any, form: Any, name: str) -> None:
    """Raise FormError unless a value has the form, or is null where it may be."""
    if isinstance(form, tuple):
        if value is None:
            return
        (form,) = form
    kind = form if isinstance(form, type) else type(form)
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (kind is float and (isinstance(value, bool) or not abs(value) < _LIMIT)):
        words = {dict: "object", list: "array", str: "text", bool: "truth value", float: "number"}
        raise FormError(f"{name} is no {words[kind]}")
    if isinstance(form, list):
        for one in value:
            _demand(one, form[0], f"one of {name}")
    elif isinstance(form, dict):
        for key in value if str in form else form:
            if key not in value:
                raise FormError(f"{name} has no {key}")
            _demand(value[key], form.get(str, form.get(key)), key)
