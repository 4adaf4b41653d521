"""Single layers, timed on a device over ssh: what is sent there, and what its answer must be.

Promise: the figures are those of `edgeprune.latency.kernels`, taken there by the same code. Files travel without their
weights, a kilobyte each; the device makes one file of random numbers that all of them read. Points go in chunks: what
was timed before a connection broke is with the caller.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune.errors import MeasurementError
from edgeprune.latency.copies import WEIGHTS, bare_copies
from edgeprune.latency.increments import COPIES
from edgeprune.latency.kernels import Point

CHUNK = 16
"""Points a process there: its start costs about as much as timing two of them."""
PLACE = "layers"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Points that one process times, and the job that says so."""

    points: tuple[Point, ...]
    job: dict[str, Any]


def chunks(runtime: str, threads: int, batch_size: int, points: Sequence[Point]) -> Iterator[Chunk]:
    """The points' jobs, in order. The first names the bytes of random numbers that the largest file of all needs."""
    files = [[bare_copies(one.operator, one.outputs, one.inputs, copies) for copies in COPIES] for one in points]
    needed = max((size for each in files for _, size in each), default=0)
    for begin in range(0, len(points), CHUNK):
        part = slice(begin, begin + CHUNK)
        asked = [
            {
                "files": [base64.b64encode(content).decode("ascii") for content, _ in each],
                "shape": [batch_size, *point.operator.image_shape(point.inputs)],
            }
            for point, each in zip(points[part], files[part], strict=True)
        ]
        job = {"do": "layers", "runtime": runtime, "threads": threads, "weights_bytes": needed, "points": asked}
        yield Chunk(tuple(points[part]), job)


def places(folder: str) -> tuple[str, ...]:
    """Files that the device makes in its folder, to be removed at the end."""
    names = (*(f"copies{copies}.onnx" for copies in COPIES), WEIGHTS, f"{WEIGHTS}.part")
    return tuple(f"{folder}/{PLACE}/{name}" for name in names)


def figures(answer: Any, chunk: Chunk, host: str) -> tuple[float, ...]:
    """Milliseconds of the chunk's points. MeasurementError when the answer is none."""
    told = answer.get("ms", ()) if isinstance(answer, dict) else ()
    if len(told) != len(chunk.points) or not all(isinstance(ms, float) and math.isfinite(ms) and ms > 0 for ms in told):
        raise MeasurementError(f"{host} gave an answer that is none: times of layers are missing, or no times")
    return tuple(told)
