"""One timing at a time on a machine: whoever measures holds its lock, and others wait.

Promise: two processes of edgeprune on one machine, whoever started them, never time files at once; training and attacks
go on meanwhile, and what they disturb the measurement shows (preempted iterations, the A/A control). The lock goes with
the process that holds it: a killed one leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprune.files import writing

NAME = "edgeprune-timing.lock"


@contextmanager
def timing_alone() -> Iterator[None]:
    """Hold the machine's timing lock while the block runs; waits for it. OutputError when there can be none."""
    path = _place()
    with writing(path):
        lock = _opened(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _place() -> Path:
    """The same file for every user, session and TMPDIR where the system has a /tmp."""
    everyones = Path("/tmp")
    return (everyones if everyones.is_dir() else Path(tempfile.gettempdir())) / NAME


def _opened(path: Path) -> int:
    """A lock needs no right to write: another user's file will do. A link is not followed."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
