"""Times single layers in a runtime, in a fresh process that is pinned to its cores.

Promise: a figure is the time of one more copy of the layer (`edgeprune.latency.copies`), in float32, as the plugin
serves files, by the method of `edgeprune.latency.increments`. These figures steer a search and are never reported as a
network's latency.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from edgeprune import protocols
from edgeprune.latency.copies import Operator, write_copies
from edgeprune.latency.increments import COPIES, one_more_ms
from edgeprune.latency.local import choose_cores
from edgeprune.latency.streaming import Message, answer, ask, open_onnx
from edgeprune.records import Record


class Point(Record):
    """A layer at one pair of widths."""

    operator: Operator
    outputs: int
    inputs: int

    def key(self) -> str:
        """What its cost is filed under."""
        return f"{self.operator.key()} {self.outputs}<-{self.inputs}"


class KernelJob(Record):
    """Points to time in one process."""

    runtime: str
    threads: int
    batch_size: int
    cores: tuple[int, ...]
    points: tuple[Point, ...]


Found = Callable[[Point, float], None]


def time_points(runtime: str, threads: int, batch_size: int, points: Sequence[Point], found: Found) -> None:
    """Time every point on this machine and hand each figure (ms) to `found` as soon as it is there.

    Errors: UsageError (more threads than cores), MeasurementError with the process's last words.
    """
    job = KernelJob(
        runtime=runtime, threads=threads, batch_size=batch_size, cores=choose_cores(threads), points=tuple(points)
    )

    def take(message: Message) -> bool:
        found(points[message["point"]], message["ms"])
        return True

    ask("edgeprune.latency.kernels", job, threads, f"layers in {runtime}", take, len(points))


def cost_ms(runtime: protocols.Runtime, point: Point, job: KernelJob, folder: Path) -> float:
    """Milliseconds of one more copy of the layer."""
    image = point.operator.image(job.batch_size, point.inputs)
    runs = []
    for copies in COPIES:
        source = folder / f"copies{copies}.onnx"
        write_copies(point.operator, point.outputs, point.inputs, copies, source)
        session = open_onnx(runtime, source, job.threads)
        runs.append(partial(session.logits, image))
    return one_more_ms(runs)


def _work(job: KernelJob, orphaned: Callable[[], bool]) -> Iterator[Message]:
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    runtime: protocols.Runtime = protocols.find("runtime", job.runtime)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
        for number, point in enumerate(job.points):
            if orphaned():
                return
            yield {"point": number, "ms": cost_ms(runtime, point, job, Path(name))}
            gc.collect(0)


def main() -> int:
    """Entry of ``python -m edgeprune.latency.kernels``: a job on stdin, a line of JSON a point on stdout."""
    return answer(KernelJob, _work)


if __name__ == "__main__":
    sys.exit(main())
