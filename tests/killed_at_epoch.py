"""`edgeprune`, killed before it writes the checkpoint of an epoch (-1: never): `killed_at_epoch.py N ARGUMENT...`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from edgeprune import cli
from edgeprune.recovery import training
from edgeprune.recovery.checkpoint import Checkpoint, write_checkpoint

TARGET = int(sys.argv[1])


def fatal(folder: Path, state: Checkpoint) -> None:
    """`write_checkpoint`, or the end."""
    if state.epoch == TARGET:
        os.kill(os.getpid(), signal.SIGKILL)
    write_checkpoint(folder, state)
    print(f"checkpoint after epoch {state.epoch}")


training.write_checkpoint = fatal  # type: ignore[attr-defined]
cli.main(sys.argv[2:])
