"""This machine as a device: fresh timing processes, one after the other, each pinned to the same cores.

Promise: nothing that the calling process holds (torch's threads, its memory) is inside the timing processes, and
none of them outlives the call. A process that dies is an error with its last words.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from edgeprune.errors import MeasurementError, UsageError
from edgeprune.latency.runner import Job, Outcome
from edgeprune.records import BlockSamples, LatencyRequest
from edgeprune.types import Progress

LAST_WORDS = 6  # lines of a dead process's stderr that are shown


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """Times files on the machine that edgeprune runs on."""

    name: str = "local"
    kind: Literal["measured-local", "measured-remote"] = "measured-local"

    def measure(self, request: LatencyRequest, *, progress: Progress) -> tuple[BlockSamples, ...]:
        """All blocks of all processes. Errors: UsageError (more threads than cores), MeasurementError."""
        cores = choose_cores(request.threads)
        blocks: list[BlockSamples] = []
        for process in range(request.processes):
            share = process / request.processes
            progress(f"timing {request.runtime}: process {process + 1} of {request.processes}", share)
            blocks += _run(Job(request=request, process=process, cores=cores))
        progress(f"timed {request.runtime}", 1.0)
        return tuple(blocks)


DEVICE = LocalDevice()


def choose_cores(threads: int) -> tuple[int, ...]:
    """One core a thread out of those that this process may use; empty where the system cannot pin.

    The fastest cores come first (big before little); among equals the highest numbers, since interrupts and
    other people's work gather on the lowest.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        raise UsageError(
            f"{threads} threads cannot be timed on {len(allowed)} cores",
            hint=f"use --threads {len(allowed)} or fewer",
        )
    return tuple(sorted(sorted(allowed, key=lambda core: (_capacity(core), core))[-threads:]))


def _capacity(core: int) -> int:
    """Relative speed of a core as the kernel states it; 0 where it states nothing."""
    folder = Path(f"/sys/devices/system/cpu/cpu{core}")
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        try:
            return int((folder / name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return 0


def _run(job: Job) -> tuple[BlockSamples, ...]:
    # -P: a file of the user's folder called onnx.py must not stand in for the package of that name.
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "edgeprune.latency.runner"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.request.threads)}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        out, words = child.communicate(job.model_dump_json().encode())
    finally:  # Ctrl-C, or any other way out: no timing process stays behind
        if child.poll() is None:
            child.kill()
            child.wait()
    if child.returncode != 0:
        raise MeasurementError(
            f"the timing process of {job.request.runtime} {_fate(child.returncode)}",
            where=_tail(words),
            hint="the same file may fail in the runtime outside edgeprune too: try it there",
        )
    try:
        outcome = Outcome.model_validate_json(out)
    except ValidationError as error:
        raise MeasurementError(
            f"the timing process of {job.request.runtime} ended without a result", where=_tail(words)
        ) from error
    if outcome.failure is not None:
        failure = outcome.failure
        raise MeasurementError(failure.what, where=failure.where, hint=failure.hint)
    return outcome.blocks


def _fate(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _tail(words: bytes) -> str:
    lines = words.decode("utf-8", errors="replace").strip().splitlines()
    return "\n  ".join(lines[-LAST_WORDS:])
