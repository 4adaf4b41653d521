"""A headless Chromium that a test asks about a page, over its debugging pipe: no port, no package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
)
PATIENCE = 60.0  # seconds


def executable() -> str | None:
    """Where Chromium is; None: nowhere."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """What a page did when it was shown: what it asked for, what it complained of."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    picture: str = ""


class Browser:
    """One Chromium; `show` opens a page in a fresh tab and asks it for expressions."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._number = 0
        self._left = b""
        self._events: list[dict[str, Any]] = []

    def show(self, file: Path, width: int, *, dark: bool, ask: dict[str, str]) -> Page:
        """The page at `file` on a screen so wide, light or dark; the value of every expression of `ask`."""
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for name in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{name}.enable", {}, session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", size, session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", {"features": [scheme]}, session)
        self._events.clear()
        self._ask("Page.navigate", {"url": file.resolve().as_uri()}, session)
        self._until("Page.loadEventFired")
        page = Page()
        for name, expression in ask.items():
            answer = self._ask("Runtime.evaluate", {"expression": expression, "returnByValue": True}, session)
            assert "exceptionDetails" not in answer, answer
            page.values[name] = answer["result"].get("value")
        for event in self._events:
            kind, facts = event.get("method"), event.get("params", {})
            if kind == "Network.requestWillBeSent":
                page.requests.append(str(facts["request"]["url"]))
            elif kind == "Log.entryAdded":
                page.complaints.append(str(facts["entry"]["text"]))
            elif kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening"):
                page.complaints.append(json.dumps(facts)[:300])
        self._ask("Target.closeTarget", {"targetId": target})
        return page

    def _ask(self, method: str, params: dict[str, Any], session: str = "") -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def _until(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._left:
            assert time.monotonic() < end, "Chromium does not answer"
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            assert part, "Chromium has gone"
            self._left += part
        text, self._left = self._left.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def browser(command: str) -> Iterator[Browser]:
    """A Chromium with a profile of its own; gone when the block ends. It reads from 3 and writes to 4."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-", ignore_cleanup_errors=True) as profile:
        line = 'exec "$@" 3<&0 4>&1'
        arguments = ["sh", "-c", line, "sh", command, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield Browser(process)
            finally:
                process.kill()
