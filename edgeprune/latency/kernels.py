"""Times single layers in a runtime, in a fresh process that is pinned to its cores.

Promise: a figure is the time of one more copy of the layer (`edgeprune.latency.copies`), in float32, as the plugin
serves files, by the method of `edgeprune.latency.increments`. These figures steer a search and are never reported as a
network's latency.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from edgeprune import protocols
from edgeprune.errors import EdgepruneError, ExportError, MeasurementError
from edgeprune.latency.alone import timing_alone
from edgeprune.latency.copies import Operator, write_copies
from edgeprune.latency.increments import COPIES, one_more_ms
from edgeprune.latency.local import choose_cores
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
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "edgeprune.latency.kernels"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with timing_alone(), tempfile.TemporaryFile() as words:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, env=environment)
        assert child.stdin
        assert child.stdout
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(job.model_dump_json().encode())
                child.stdin.close()
            done = 0
            for line in child.stdout:
                message = json.loads(line)
                if "failure" in message:
                    raise MeasurementError(f"cannot time layers in {runtime}", where=message["failure"])
                found(points[message["point"]], message["ms"])
                done += 1
            child.wait()
        finally:
            child.stdout.close()
            if child.poll() is None:
                child.kill()
                child.wait()
        if done < len(points):
            words.seek(0)
            tail = words.read().decode(errors="replace").strip().splitlines()[-6:]
            raise MeasurementError(f"the process that times layers in {runtime} ended early", where="\n  ".join(tail))


def cost_ms(runtime: protocols.Runtime, point: Point, job: KernelJob, folder: Path) -> float:
    """Milliseconds of one more copy of the layer."""
    image = point.operator.image(job.batch_size, point.inputs)
    runs = []
    for copies in COPIES:
        source = folder / f"copies{copies}.onnx"
        write_copies(point.operator, point.outputs, point.inputs, copies, source)
        session = _open(runtime, source, job.threads)
        runs.append(partial(session.logits, image))
    return one_more_ms(runs)


def _open(runtime: protocols.Runtime, source: Path, threads: int) -> protocols.Session:
    """The file itself where the runtime reads ONNX (converting takes longer than timing), else its own format."""
    try:
        return runtime.open(source, threads=threads)
    except ExportError:
        return runtime.open(runtime.convert(source, source.with_suffix(runtime.suffix))[0], threads=threads)


def _work(job: KernelJob, parent: int) -> Iterator[dict[str, object]]:
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    runtime: protocols.Runtime = protocols.find("runtime", job.runtime)
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
        for number, point in enumerate(job.points):
            if os.getppid() != parent:
                return
            yield {"point": number, "ms": cost_ms(runtime, point, job, Path(name))}
            gc.collect(0)


def main() -> int:
    """Entry of ``python -m edgeprune.latency.kernels``: a job on stdin, a line of JSON a point on stdout."""
    parent = os.getppid()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as result:
        os.dup2(2, 1)  # whatever a runtime prints goes to stderr
        job = KernelJob.model_validate_json(sys.stdin.read())
        try:
            for message in _work(job, parent):
                result.write(json.dumps(message) + "\n")
                result.flush()
        except EdgepruneError as error:
            result.write(json.dumps({"failure": str(error)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
