"""Answers of a device that are kept until a run is finished, so that a lost connection costs one process and no more.

Promise: an answer is used again only for the very job (files by sha256, settings, seed) on the very device (name,
processor, versions) by the very runner that gave it, and only for a day.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.files import write_text

LONGEST_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder of answers, one a process."""

    folder: Path

    @classmethod
    def of(cls, host: str, machine: str, runner: str, job: dict[str, Any]) -> Kept:
        """The answers to a job of that runner on that machine."""
        text = json.dumps([host, machine, runner, job], sort_keys=True)
        return cls(_cache() / "remote" / hashlib.sha256(text.encode()).hexdigest()[:32])

    def read(self, process: int, *, longest_s: float | None = None) -> dict[str, Any] | None:
        """The answer of a process; None when there is none, or it is too old (a day), or not whole."""
        path = self.folder / f"{process}.json"
        try:
            if time.time() - path.stat().st_mtime > (LONGEST_S if longest_s is None else longest_s):
                return None
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, process: int, answer: dict[str, Any]) -> None:
        """Keep an answer; OutputError when it cannot be written."""
        write_text(self.folder / f"{process}.json", json.dumps(answer))

    def remove(self) -> None:
        """Forget all answers."""
        for path in self.folder.glob("*.json"):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            self.folder.rmdir()


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "edgeprune"
