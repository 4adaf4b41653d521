"""This machine as a device: fresh timing processes, one after the other, each pinned to the same cores.

Promise: nothing that the calling process holds (torch's threads, its memory) is inside the timing processes, and
none of them outlives the call. A process that dies is an error with its last words.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ValidationError

from edgeprune.errors import MeasurementError, UsageError
from edgeprune.latency.alone import timing_alone
from edgeprune.latency.machine import fastest_cores
from edgeprune.latency.runner import Job, Outcome
from edgeprune.latency.settings import RemoteConfig
from edgeprune.protocols import Device, Runtime, find
from edgeprune.records import BlockSamples, LatencyFile, LatencyRequest, RuntimeInfo
from edgeprune.types import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeprune.latency.kernels import Found, Point
    from edgeprune.types import Floats

LAST_WORDS = 6  # lines of a dead process's stderr that are shown


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """Times files on the machine that edgeprune runs on."""

    name: str = "local"
    kind: Literal["measured-local", "measured-remote"] = "measured-local"
    machine: None = None

    def attach(self, settings: RemoteConfig) -> AbstractContextManager[Device]:
        """This machine needs no connection."""
        return nullcontext(self)

    def logits(self, file: LatencyFile, runtime: str, images: Floats, *, threads: int) -> tuple[RuntimeInfo, Floats]:
        """What the file gives for the images, batch by batch."""
        served: Runtime = find("runtime", runtime)
        session = served.open(Path(file.path), threads=threads)
        return session.info, np.concatenate([session.logits(images[at : at + 8]) for at in range(0, len(images), 8)])

    def measure(self, request: LatencyRequest, *, progress: Progress) -> tuple[BlockSamples, ...]:
        """All blocks of all processes. Errors: UsageError (more threads than cores), MeasurementError."""
        cores = choose_cores(request.threads)
        blocks: list[BlockSamples] = []
        last = request.first + request.processes
        with timing_alone():
            for process in range(request.first, last):
                progress(f"timing {request.runtime}: process {process + 1} of {last}", process / last)
                blocks += _run(Job(request=request, process=process, cores=cores))
        progress(f"timed {request.runtime}", 1.0)
        return tuple(blocks)

    def time_layers(self, runtime: str, threads: int, batch_size: int, points: Sequence[Point], found: Found) -> None:
        """Every point in a fresh process. Errors: UsageError (more threads than cores), MeasurementError."""
        from edgeprune.latency import kernels

        kernels.time_points(runtime, threads, batch_size, points, found)

    def probe(self) -> dict[str, Any]:
        """The device runner's probe in a fresh process with one thread. MeasurementError when it fails."""
        # numpy's BLAS takes its threads from the environment when it is loaded.
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, "1")}
        command = [sys.executable, "-P", "-m", "edgeprune.latency.board"]
        job = json.dumps({"do": "probe", "folder": "/"}).encode()
        done = subprocess.run(command, input=job, capture_output=True, env=environment, check=False)
        try:
            answer: dict[str, Any] = json.loads(done.stdout)["result"]
        except (ValueError, KeyError) as error:
            raise MeasurementError("the probe ended without a result", where=tail(done.stderr)) from error
        return answer


DEVICE = LocalDevice()


def choose_cores(threads: int) -> tuple[int, ...]:
    """One core a thread out of those that this process may use, the fastest first; empty where nobody can pin."""
    try:
        return fastest_cores(threads)
    except ValueError as error:
        raise UsageError(str(error), hint="use fewer --threads, or let the process use more cores") from None


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
            where=tail(words),
            hint="the same file may fail in the runtime outside edgeprune too: try it there",
        )
    try:
        outcome = Outcome.model_validate_json(out)
    except ValidationError as error:
        raise MeasurementError(
            f"the timing process of {job.request.runtime} ended without a result", where=tail(words)
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


def tail(words: bytes) -> str:
    """The last lines of what a process wrote."""
    lines = words.decode("utf-8", errors="replace").strip().splitlines()
    return "\n  ".join(lines[-LAST_WORDS:])
