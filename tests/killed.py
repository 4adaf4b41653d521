"""`edgeprune`, killed with SIGKILL in the middle of the first write of a stage: `killed.py STAGE ARGUMENT...`.

The write is as far as it can be without being finished: everything is in the file beside, nothing is renamed.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from edgeprune import cli, files
from edgeprune.runfolder import RunFolder

TARGET = sys.argv[1]
current = "report"  # what is written outside of every stage
stage, fsync = RunFolder.stage, os.fsync


def watched(self: RunFolder, name: str, kind: Any, inputs: Any, work: Any) -> Any:
    """`RunFolder.stage`, noting which stage is at work."""
    global current
    current = name
    try:
        return stage(self, name, kind, inputs, work)
    finally:
        current = "report"


def fatal(descriptor: int) -> None:
    """`os.fsync`, or the end."""
    if current == TARGET:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)


RunFolder.stage = watched  # type: ignore[method-assign]
files.os.fsync = fatal
cli.main(sys.argv[2:])
