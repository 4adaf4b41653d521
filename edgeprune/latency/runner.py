"""The timing process: reads a job as JSON from stdin, times its files, writes the samples as JSON to stdout.

Promise: a fresh interpreter that loads numpy and one runtime and nothing heavier (no torch), pinned to its cores
before the runtime starts its threads. The files are hashed before they are opened; a file that is not the expected
one is an error, never a figure.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np

from edgeprune import protocols
from edgeprune.errors import EdgepruneError, MeasurementError
from edgeprune.files import sha256_of
from edgeprune.latency import machine, timing
from edgeprune.records import BlockSamples, Heat, LatencyFile, LatencyRequest, Record

if TYPE_CHECKING:
    from edgeprune.types import Floats

Label = Literal["dense", "control", "compressed"]
BATCHES = 32  # different batches in turn, so that branches and denormals of one image do not stand for all


class Job(Record):
    """One process's share of a request."""

    request: LatencyRequest
    process: int
    cores: tuple[int, ...]


class Failure(Record):
    """Why there are no samples, in the words of an EdgepruneError."""

    what: str
    where: str
    hint: str


class Outcome(Record):
    """What the process writes: blocks in order, or a failure."""

    blocks: tuple[BlockSamples, ...] = ()
    failure: Failure | None = None


def work(job: Job, parent: int) -> tuple[BlockSamples, ...]:
    """Pin, check, open, warm up and time; the blocks in the order in which they ran.

    Stops with a MeasurementError once `parent` is no longer this process's parent.
    """
    request = job.request
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    files = _files(request)
    for file in {file.path: file for file in files.values()}.values():
        _check(file)
    batches = batches_of(load_images(Path(request.images)), request.batch_size)
    clock = timing.system_clock(request.threads)
    blocks = timing.Blocks(request.blocks, request.block_ms, request.seed, job.process, request.iterations)
    runtime: protocols.Runtime = protocols.find("runtime", request.runtime)
    openers = {label: partial(runtime.open, Path(file.path), threads=request.threads) for label, file in files.items()}
    opened = timing.open_each(openers, lambda session: runner_of(session, batches), clock, blocks)
    gc.collect()
    gc.disable()
    before = machine.heat(job.cores)
    done, warm = timing.interleave(opened, clock, blocks, lambda: _check_parent(parent))
    heat = Heat(**before), Heat(**machine.heat(job.cores))
    peak = machine.peak_rss_bytes()
    return tuple(
        BlockSamples(
            process=job.process,
            round=timed.round,
            position=position,
            label=_label(timed.label),
            samples_ms=timed.block.samples_ms,
            preempted=timed.block.preempted,
            runtime_ms=timed.block.runtime_ms,
            runtime=opened[timed.label].session.info,
            cores=job.cores,
            settled=warm[timed.label].settled,
            peak_rss_bytes=peak,
            cold_start_ms=opened[timed.label].load_ms + opened[timed.label].first_ms,
            load_ms=opened[timed.label].load_ms,
            first_ms=opened[timed.label].first_ms,
            started_s=timed.started_s,
            heat=heat,
        )
        for position, timed in enumerate(done)
    )


def _check_parent(parent: int) -> None:
    if os.getppid() != parent:
        raise MeasurementError("the process that asked for the timing is gone")


def _label(label: str) -> Label:
    assert label in ("dense", "control", "compressed")
    return label  # type: ignore[return-value]  # mypy does not narrow str by `in`


def _files(request: LatencyRequest) -> dict[str, LatencyFile]:
    files = {"dense": request.dense}
    if request.control:
        files["control"] = request.dense
    if request.compressed is not None:
        files["compressed"] = request.compressed
    return files


def _check(file: LatencyFile) -> None:
    for path, expected in ((file.path, file.sha256), *file.companions):
        try:
            found = sha256_of(Path(path))
        except OSError as error:
            raise MeasurementError(f"cannot read the file to time: {path}: {error.strerror or error}") from error
        if found != expected:
            raise MeasurementError(
                f"{path} is not the file that was to be timed",
                where=f"expected sha256 {expected}, found {found}",
                hint="the file changed after it was exported: export it again",
            )


def load_images(path: Path) -> Floats:
    """The images that were saved to time with. Errors: MeasurementError."""
    try:
        images: Floats = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MeasurementError(f"cannot read the images to time with: {path}: {error}") from error
    return images


def batches_of(images: Floats, size: int) -> tuple[Floats, ...]:
    """Contiguous batches float32 (size, C, H, W), images in turn, starting over where they run out."""
    count = min(BATCHES, max(1, len(images) // size))
    ids = np.arange(count * size).reshape(count, size) % len(images)
    return tuple(np.ascontiguousarray(images[part], dtype=np.float32) for part in ids)


def runner_of(session: protocols.Session, batches: tuple[Floats, ...]) -> Callable[[int], object]:
    """A function that runs inference number i, batches in turn."""
    logits, count = session.logits, len(batches)
    return lambda i: logits(batches[i % count])


def _own_stdout() -> TextIO:
    """The real stdout for the result alone; whatever a runtime prints goes to stderr."""
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return result


def main() -> int:
    """Entry of ``python -m edgeprune.latency.runner``."""
    parent = os.getppid()
    with _own_stdout() as result:
        job = Job.model_validate_json(sys.stdin.read())
        try:
            outcome = Outcome(blocks=work(job, parent))
        except EdgepruneError as error:
            outcome = Outcome(failure=Failure(what=error.what, where=error.where, hint=error.hint))
        result.write(outcome.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
