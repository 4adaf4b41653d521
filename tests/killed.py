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
at_work = ["report"]  # the stage; what is written outside of every stage is the report
stage, fsync = RunFolder.stage, os.fsync


def watched(self: RunFolder, name: str, kind: Any, inputs: Any, work: Any) -> Any:
    """`RunFolder.stage`, noting which stage is at work."""
    at_work.append(name)
    try:
        return stage(self, name, kind, inputs, work)
    finally:
        at_work.pop()


def fatal(descriptor: int) -> None:
    """`os.fsync`, or the end."""
    if at_work[-1] == TARGET:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)


RunFolder.stage = watched  # type: ignore[method-assign]
files.os.fsync = fatal
cli.main(sys.argv[2:])
