"""A headless Chromium, spoken to over a pipe by its DevTools protocol: no driver, no package, no port.

python tests/browser.py PAGE.html OUT     screenshots of a page: desktop, phone, dark, print; what its console said
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE, DESKTOP = (390, 844), (1280, 900)
START = """
import fcntl, os, sys
theirs = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, place in zip(theirs, (3, 4)):  # where a browser looks for its pipes
    os.dup2(number, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
BROKEN_IMAGES = (
    "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt + ' ' + i.src.slice(0, 60))"
)


def find() -> str | None:
    """The browser's program; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a browser of its own. Its console's errors, failed requests among them, are `complaints`."""

    def __init__(self, profile: Path) -> None:
        program = find()
        assert program is not None
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={profile}", "--no-first-run", "--disable-background-networking"]
        command = [sys.executable, "-c", START, str(theirs_in), str(theirs_out), program, *flags, "about:blank"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session = b"", 0, None
        self.complaints: list[str] = []
        self.warnings: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of the protocol; what the page says meanwhile is heard."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._hear(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _hear(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                said = " ".join(str(arg.get("value", arg)) for arg in params["args"])
                (self.warnings if params["type"] == "warning" else self.complaints).append(said)
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                said = f"{params['entry']['text']} {params['entry'].get('url', '')}"
                (self.warnings if params["entry"]["level"] == "warning" else self.complaints).append(said)
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    def open(self, url: str, size: tuple[int, int] = DESKTOP, dark: bool = False, media: str = "") -> None:
        """The page is loaded, in a window of this size; a narrow one is a phone's."""
        self._loaded, self.requests = False, []
        phone = size[0] < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.send("Page.navigate", url=url)
        until = time.monotonic() + 60
        while not self._loaded:
            assert time.monotonic() < until, f"{url} wasn't loaded within a minute"
            self.ask("0")
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise's when it is kept."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> None:
        """The expression is true."""
        until = time.monotonic() + seconds
        while not self.ask(f"Boolean({expression})"):
            assert time.monotonic() < until, f"not true within {seconds:g} s: {expression}"
            time.sleep(0.1)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        if whole:
            content = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": content["width"], "height": content["height"], "scale": 1}
            answer = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed."""
        answer = self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(answer["data"]))


def look(page: Path, out: Path) -> list[str]:
    """Screenshots of a page as a desktop, a phone and a printer show it; what is wrong with it."""
    out.mkdir(parents=True, exist_ok=True)
    with Browser(out / "profile") as browser:
        wrong = []
        for name, size, dark in (("desktop", DESKTOP, False), ("dark", DESKTOP, True), ("phone", PHONE, False)):
            browser.open(page.resolve().as_uri(), size, dark)
            browser.screenshot(out / f"{name}.png", whole=True)
            if (width := browser.ask("document.documentElement.scrollWidth")) > size[0]:
                wrong.append(f"{name}: the page is {width} pixels wide, the window {size[0]}")
            wrong += [f"{name}: not shown: {image}" for image in browser.ask(BROKEN_IMAGES)]
        browser.pdf(out / "print.pdf")
        return wrong + browser.complaints + browser.warnings


if __name__ == "__main__":
    print("\n".join(look(Path(sys.argv[1]), Path(sys.argv[2]))) or "nothing to complain of")
