"""The timing process: reads a job as JSON from stdin, times its files, writes the samples as JSON to stdout.

Promise: a fresh interpreter that loads numpy and one runtime and nothing heavier (no torch), pinned to its cores
before the runtime starts its threads. The files are hashed before they are opened; a file that is not the expected
one is an error, never a figure.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np

from edgeprune import protocols
from edgeprune.errors import EdgepruneError, MeasurementError
from edgeprune.files import sha256_of
from edgeprune.latency import timing
from edgeprune.records import BlockSamples, LatencyFile, LatencyRequest, Record

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


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    session: protocols.Session
    run: Callable[[int], object]
    cold_start_ms: float


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
    batches = _batches(_load(Path(request.images)), request.batch_size)
    clock = timing.system_clock(request.threads)
    opened = _open(request, files, batches, clock, job.process)
    gc.collect()
    gc.disable()
    warm = {label: timing.warm_up(one.run, clock) for label, one in opened.items()}
    # The control must do exactly what the dense file does.
    counts = {label: timing.iterations_for(request.block_ms, warm[label].median_ms) for label in opened}
    counts["control"] = counts["dense"]
    done: list[tuple[int, Label, timing.Block]] = []
    for number, labels in enumerate(timing.draw_order(tuple(opened), request.blocks, request.seed, job.process)):
        if os.getppid() != parent:
            raise MeasurementError("the process that asked for the timing is gone")
        for label in labels:
            done.append((number, _label(label), timing.time_block(opened[label].run, counts[label], clock)))
    peak = _peak_rss_bytes()
    return tuple(
        BlockSamples(
            process=job.process,
            round=number,
            position=position,
            label=label,
            samples_ms=block.samples_ms,
            preempted=block.preempted,
            runtime=opened[label].session.info,
            cores=job.cores,
            settled=warm[label].settled,
            peak_rss_bytes=peak,
            cold_start_ms=opened[label].cold_start_ms,
        )
        for position, (number, label, block) in enumerate(done)
    )


def _label(label: str) -> Label:
    assert label in ("dense", "control", "compressed")
    return label  # type: ignore[return-value]  # mypy does not narrow str by `in`


def _files(request: LatencyRequest) -> dict[str, LatencyFile]:
    files = {"dense": request.dense, "control": request.dense}
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


def _load(path: Path) -> Floats:
    try:
        images: Floats = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MeasurementError(f"cannot read the images to time with: {path}: {error}") from error
    return images


def _batches(images: Floats, size: int) -> tuple[Floats, ...]:
    """Contiguous batches float32 (size, C, H, W), images in turn, starting over where they run out."""
    count = min(BATCHES, max(1, len(images) // size))
    ids = np.arange(count * size).reshape(count, size) % len(images)
    return tuple(np.ascontiguousarray(images[part], dtype=np.float32) for part in ids)


def _open(
    request: LatencyRequest,
    files: dict[str, LatencyFile],
    batches: tuple[Floats, ...],
    clock: timing.Clock,
    process: int,
) -> dict[str, _Opened]:
    """Open each label's own session, in random order, after one that is thrown away.

    The first session of a process pays for loading the library; it would land on whichever file came first.
    """
    runtime: protocols.Runtime = protocols.find("runtime", request.runtime)
    runtime.open(Path(request.dense.path), threads=request.threads).logits(batches[0])
    labels = random.Random(f"open/{request.seed}/{process}").sample(sorted(files), len(files))
    opened = {}
    for label in labels:
        start = clock.wall_ns()
        session = runtime.open(Path(files[label].path), threads=request.threads)
        session.logits(batches[0])
        opened[label] = _Opened(session, _runner(session, batches), (clock.wall_ns() - start) / 1e6)
    return {label: opened[label] for label in files}


def _runner(session: protocols.Session, batches: tuple[Floats, ...]) -> Callable[[int], object]:
    logits, count = session.logits, len(batches)
    return lambda i: logits(batches[i % count])


def _peak_rss_bytes() -> int:
    """Peak resident memory of this process. `ru_maxrss` would do, but on Linux it survives exec: a worker started
    by a large process would report that process's peak."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
