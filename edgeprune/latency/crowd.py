"""Times many small files beside one of them, in one fresh process: what steers a search, never a report.

Promise: a figure is a share of the reference file's time, the median over rounds in which both ran, so that a drift of
the machine touches both. A hundred files are timed in the seconds in which the referee (`edgeprune.latency.protocol`)
times three; each figure is a percent or two off, and no two files are set against each other by them alone
(`edgeprune.pruning.in_place` draws one law through all).
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeprune import protocols
from edgeprune.latency import timing
from edgeprune.latency.runner import batches_of, load_images, runner_of
from edgeprune.latency.streaming import Message, answer, ask, open_onnx
from edgeprune.records import Record

_TOGETHER = 12
"""Files that are open at once, and take turns beside the reference."""
_ROUNDS, _BLOCK_MS, _LEAST_RUNS = 5, 8.0, 3


class CrowdJob(Record):
    """ONNX files to time in one process, each against the reference."""

    runtime: str
    threads: int
    batch_size: int
    cores: tuple[int, ...]
    images: str
    reference: str
    files: tuple[str, ...]


def time_crowd(job: CrowdJob, found: Callable[[int, float, float], bool]) -> None:
    """Time the job's files on this machine.

    `found` takes the number of a file, its share of the reference's time, and how far its rounds are apart (median
    deviation from the share, relative), a dozen at a time; false from it: no more are wanted. Errors: MeasurementError
    when the process dies or a file does not run.
    """

    def take(one: Message) -> bool:
        return found(one["file"], one["share"], one["apart"])

    ask("edgeprune.latency.crowd", job, job.threads, f"networks in {job.runtime}", take, len(job.files))


def _work(job: CrowdJob, orphaned: Callable[[], bool]) -> Iterator[Message]:
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    runtime: protocols.Runtime = protocols.find("runtime", job.runtime)
    batches = batches_of(load_images(Path(job.images)), job.batch_size)
    clock, draw = timing.system_clock(job.threads), random.Random(0)

    def opened(path: str) -> _Runner:
        run = runner_of(open_onnx(runtime, Path(path), job.threads), batches)
        median = timing.warm_up(run, clock).median_ms
        return _Runner(
            run, max(_LEAST_RUNS, timing.iterations_for(_BLOCK_MS, median)), timing.refills_for(median), clock
        )

    reference = opened(job.reference)
    for first in range(0, len(job.files), _TOGETHER):
        if orphaned():
            return
        numbers = range(first, min(first + _TOGETHER, len(job.files)))
        crowd = {number: opened(job.files[number]) for number in numbers}
        gc.collect()
        rounds = [_round(reference, crowd, draw) for _ in range(_ROUNDS)]
        for number in numbers:
            share = statistics.median(one[number] for one in rounds)
            apart = statistics.median(abs(one[number] - share) for one in rounds) / share
            yield {"file": number, "share": share, "apart": apart}


@dataclass(frozen=True)
class _Runner:
    """An open file, and how many runs its blocks have."""

    run: timing.Run
    count: int
    refills: int
    clock: timing.Clock

    def block_ms(self) -> float:
        block = timing.time_block(self.run, self.count, self.clock, refills=self.refills)
        return statistics.median(block.samples_ms)


def _round(reference: _Runner, crowd: Mapping[int, _Runner], draw: random.Random) -> dict[int, float]:
    """Each file's share of the reference's time, which is taken before and after all of them."""
    before = reference.block_ms()
    times = {number: crowd[number].block_ms() for number in draw.sample(sorted(crowd), len(crowd))}
    own = (before + reference.block_ms()) / 2
    return {number: ms / own for number, ms in times.items()}


def main() -> int:
    """Entry of ``python -m edgeprune.latency.crowd``: a job on stdin, a line of JSON a file on stdout."""
    return answer(CrowdJob, _work)


if __name__ == "__main__":
    sys.exit(main())
