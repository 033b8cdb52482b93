"""A browser for tests: Chromium without a window, told by the DevTools protocol what to do.

The protocol runs through two pipes (``--remote-debugging-pipe``: commands come in by descriptor 3,
answers and events go out by 4, each a JSON object with a zero byte at its end). So no port is open,
and Python's own library is enough.
"""

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

PROGRAMS = ["chromium-headless-shell", "chromium"]
WITH_PIPES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts the pipes where Chromium expects them, in a process that is no copy of the test run."""

KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}
"""Of the keyboard: the number of the key, and the text that it makes."""

CONDITION = """new Promise(done => {
  const look = () => (%s) ? done(true) : setTimeout(look, 10);
  look();
})"""


COLOURS = """async data => {
  const bytes = Uint8Array.from(atob(data), sign => sign.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes]));
  const {width, height} = image;
  const canvas = new OffscreenCanvas(width, height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const pixels = canvas.getImageData(0, 0, width, height).data, colours = new Map();
  let indices = "";
  for (let at = 0; at < pixels.length; at += 4) {
    const colour = [0, 1, 2].map(part => 17 * Math.round(pixels[at + part] / 17));
    const key = `${colour}`;
    if (!colours.has(key)) colours.set(key, [colours.size, colour]);
    indices += String.fromCharCode(colours.get(key)[0]);
  }
  const palette = [...colours.values()].flatMap(([, colour]) => colour);
  return {width, height, palette, indices: btoa(indices)};
}"""
"""Gives the pixels of a picture, each channel in sixteen steps."""


class BrowserError(Exception):
    """What the browser was told to do, it could not."""


class Browser:
    """The ends of the pipes, and what came out of them."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._read = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        """What happened, in order, as the protocol tells it."""

    def tell(self, method: str, session: str = "", **parameters: object) -> dict[str, Any]:
        """Give a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has gone"
            self._read += read
        one, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        return message


class Tab:
    """A tab of a browser."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._target = browser.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.tell("Target.attachToTarget", targetId=self._target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def close(self) -> None:
        self._browser.tell("Target.closeTarget", targetId=self._target)

    def tell(self, method: str, **parameters: object) -> dict[str, Any]:
        return self._browser.tell(method, self._session, **parameters)

    def complaints(self) -> list[str]:
        """List what was written to the console or thrown, and dialogues."""
        self.tell("Runtime.evaluate", expression="0")  # what it has said before this, is here then
        return [
            json.dumps(event["params"])
            for event in self._browser.events
            if event.get("sessionId") == self._session
            and event["method"]
            in {
                "Log.entryAdded",
                "Page.javascriptDialogOpening",
                "Runtime.consoleAPICalled",
                "Runtime.exceptionThrown",
            }
        ]

    def open(self, url: str) -> None:
        """Go there and wait until the document is loaded."""
        error = self.tell("Page.navigate", url=url).get("errorText")
        assert not error, error
        self.until("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; a promise is waited for."""
        answer = self.tell(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        self.ask(CONDITION % condition)

    def press(self, *keys: str) -> None:
        """Press and release keys where the focus is, one after the other."""
        for key in keys:
            number, text = KEYS[key]
            named = {"key": key, "windowsVirtualKeyCode": number}
            self.tell("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
            self.tell("Input.dispatchKeyEvent", type="keyUp", **named)

    def type(self, text: str) -> None:
        """Have a text come from the keyboard, or whatever writes with one."""
        self.tell("Input.insertText", text=text)

    def hasten(self, times: int) -> None:
        """Have the timers of documents that are opened from now on run faster."""
        source = f"setTimeout = (real => (f, ms) => real(f, ms / {times}))(setTimeout)"
        self.tell("Page.addScriptToEvaluateOnNewDocument", source=source)

    def emulate(self, **features: str) -> None:
        """Prefer something, as users of this browser would: ``prefers_color_scheme="dark"``."""
        wishes = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.tell("Emulation.setEmulatedMedia", features=wishes)

    def resize(self, width: int, height: int) -> None:
        """Have the window a size in CSS pixels."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def tree(self) -> list[dict[str, Any]]:
        """List what assistive technology is told of: role, name, and properties."""
        nodes = self.tell("Accessibility.getFullAXTree")["nodes"]
        return [
            {p["name"]: p["value"].get("value") for p in node.get("properties", ())}
            | {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"]
        ]

    def picture(self) -> bytes:
        """Take a picture of the whole page, as PNG of few colours: a quarter of Chromium's own."""
        size = self.tell("Page.getLayoutMetrics")["cssContentSize"]
        clip = {**size, "scale": 1}
        taken = self.tell("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        found = self.ask(f"({COLOURS})('{taken}')")
        width, height = found["width"], found["height"]
        indices = base64.b64decode(found["indices"])
        lines = b"".join(b"\0" + indices[at : at + width] for at in range(0, len(indices), width))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in (
                (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
                (b"PLTE", bytes(found["palette"])),
                (b"IDAT", zlib.compress(lines, 9)),
                (b"IEND", b""),
            )
        )


def _pipe() -> list[int]:
    """Make a pipe of numbers above those that the program expects: none is put upon another."""
    low = os.pipe()
    high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in low]
    for one in low:
        os.close(one)
    return high


@contextlib.contextmanager
def started(profile: pathlib.Path) -> Iterator[Browser]:
    """Start a browser in the zone of UTC with its profile in a folder, and end it."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("Chromium is missing: install chromium-headless-shell")
    (theirs, commands), (answers, ours) = _pipe(), _pipe()
    command = [sys.executable, "-c", WITH_PIPES, str(theirs), str(ours), program, "--headless"]
    command += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    # It finds nobody but who is on this machine.
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    process = subprocess.Popen(
        command,
        pass_fds=(theirs, ours),
        env={**os.environ, "TZ": "UTC"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(ours)
    try:
        yield Browser(commands, answers)
    finally:
        os.close(commands)  # which ends it
        os.close(answers)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
