"""Time exported files and judge them: what `compress` and `edgeprune measure` call.

Promise: the figures come from fresh processes on the device, never from the calling process, and from real images
that the caller gives. What was timed is named by its sha256.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune import protocols
from edgeprune.errors import DataError, MeasurementError
from edgeprune.files import sha256_of
from edgeprune.latency import stopping
from edgeprune.latency.protocol import compare, steer
from edgeprune.latency.runner import BATCHES
from edgeprune.latency.settings import LatencyConfig
from edgeprune.records import BlockSamples, LatencyComparison, LatencyFile, LatencyRequest, QuickRatio

if TYPE_CHECKING:
    from edgeprune.types import Floats, Progress

QUICK_PROCESSES, QUICK_BLOCKS, QUICK_BLOCK_MS = 3, 10, 25.0
QUICK_LOOKS = (QUICK_PROCESSES, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48)
"""Processes that a candidate is timed in, until its interval says enough: a minute or two at the most. Looks that are
twice as far apart cost a third more processes in noise, and miss the goal as seldom."""
SHORT = {
    "processes": QUICK_PROCESSES,
    "blocks": QUICK_BLOCKS,
    "block_ms": QUICK_BLOCK_MS,
    "duration": None,
    "runs": None,
}


@dataclass(frozen=True, slots=True)
class Bench:
    """Where files are timed: the target's name for the report, and the device (None: this machine)."""

    target: str
    device: protocols.Device | None = None


def latency_file(path: Path, companions: tuple[Path, ...] = ()) -> LatencyFile:
    """The file as it is now, by absolute path and sha256; `companions` belong to it (OpenVINO's weights)."""
    if not path.is_file():
        raise MeasurementError(f"no such file: {path}", hint="give the exported file to time (.onnx or .xml)")
    belonging = tuple((str(other.resolve()), sha256_of(other)) for other in companions)
    size = sum(file.stat().st_size for file in (path, *companions))
    return LatencyFile(path=str(path.resolve()), sha256=sha256_of(path), companions=belonging, size_bytes=size)


def measure(
    dense: LatencyFile,
    compressed: LatencyFile | None,
    runtime: str,
    images: Floats,
    settings: LatencyConfig,
    *,
    bench: Bench,
    seed: int,
    progress: Progress,
) -> LatencyComparison:
    """Time both files (or `dense` alone) in interleaved blocks on the bench's device, and find what memory each takes.

    For its memory each file is served once more, by a process of its own, which says how much it held at most.
    images: float32 (M, C, H, W) pixels, M >= 1; batches are drawn from them. Errors: DataError (images),
    UsageError (unknown runtime, more threads than cores), MeasurementError (a process died, a file changed),
    InconclusiveError (fewer than two undisturbed rounds), and those of the device. A machine that is merely too
    noisy gives a comparison whose verdict is inconclusive.
    """
    protocols.find("runtime", runtime)
    plan = stopping.plan_of(settings, 2 if compressed is None else 3)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        pixels = save_images(images, settings.batch_size, Path(folder))
        request = _request((dense, compressed), runtime, pixels, settings, plan, seed)
        clock = _Clock(request, bench, settings.control_limit, plan.error, progress)
        found = stopping.run(plan, clock.more, clock.judge, lambda: time.monotonic() * 1000)
        return _with_memory(found, request, clock.device)


@dataclass(frozen=True, slots=True)
class _Clock:
    """Runs processes of a request on a bench and judges all of them so far."""

    request: LatencyRequest
    bench: Bench
    control_limit: float
    error: float
    progress: Progress
    samples: list[BlockSamples] = field(default_factory=list)

    def more(self, first: int, count: int) -> None:
        """Run `count` processes, the first of which is number `first`."""
        part = self.request.model_copy(update={"first": first, "processes": count})
        self.samples.extend(self.device.measure(part, progress=self.progress))

    def judge(self) -> LatencyComparison:
        """What the samples so far say."""
        device, limit = self.device, self.control_limit
        target, error = self.bench.target, self.error
        found = compare(self.samples, self.request, target, kind=device.kind, control_limit=limit, error=error)
        return found.model_copy(update={"machine": device.machine})

    @property
    def device(self) -> protocols.Device:
        """Where the processes run."""
        device: protocols.Device = self.bench.device or protocols.find("device", "local")
        return device


def _request(
    files: tuple[LatencyFile, LatencyFile | None],
    runtime: str,
    images: Path,
    settings: LatencyConfig,
    plan: stopping.Plan,
    seed: int,
) -> LatencyRequest:
    dense, compressed = files
    return LatencyRequest(
        runtime=runtime,
        dense=dense,
        compressed=compressed,
        images=str(images),
        batch_size=settings.batch_size,
        threads=settings.threads,
        processes=plan.looks[-1],
        blocks=plan.rounds,
        block_ms=settings.block_ms,
        seed=seed,
        iterations=plan.iterations,
    )


def at_once(ratio: QuickRatio) -> bool:
    """What `quick_ratio` asks by default: any figure is enough."""
    return True


def _with_memory(found: LatencyComparison, request: LatencyRequest, device: protocols.Device) -> LatencyComparison:
    """The comparison, with the peak memory of each file served alone."""

    def alone(file: LatencyFile) -> int:
        short = {"compressed": None, "control": False, "processes": 1, "blocks": 2, "iterations": 8}
        blocks = device.measure(request.model_copy(update={"dense": file, **short}), progress=lambda *_: None)
        return max(block.peak_rss_bytes for block in blocks)

    sides = {"dense": found.dense.model_copy(update={"peak_rss_bytes": alone(request.dense)})}
    if found.compressed is not None and request.compressed is not None:
        sides["compressed"] = found.compressed.model_copy(update={"peak_rss_bytes": alone(request.compressed)})
    return found.model_copy(update=sides)


def quick_ratio(
    dense: LatencyFile,
    compressed: LatencyFile,
    runtime: str,
    images: Floats,
    settings: LatencyConfig,
    seed: int,
    device: protocols.Device | None = None,
    enough: Callable[[QuickRatio], bool] = at_once,
) -> QuickRatio:
    """The same protocol in about three seconds: a speed-up to steer by, with its p50s; not for a report.

    No control runs beside it, which would take a third of the time: a candidate needs no verdict.
    Where that is not `enough`, more processes run and all are pooled: looks after 3, 4, 5, 6, 8 and so on, at most 48.
    """
    short = settings.model_copy(update=SHORT)
    plan = replace(stopping.plan_of(short, 2), looks=QUICK_LOOKS)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        request = _request(
            (dense, compressed), runtime, save_images(images, short.batch_size, Path(folder)), short, plan, seed
        )
        request = request.model_copy(update={"control": False})
        clock = _Clock(request, Bench("quick", device), short.control_limit, plan.error, lambda *_: None)
        before = 0
        for look in plan.looks:
            clock.more(before, look - before)
            found, before = steer(clock.samples, request), look
            if enough(found):
                break
    return found


def p50_alone(
    file: LatencyFile,
    runtime: str,
    images: Floats,
    settings: LatencyConfig,
    seed: int,
    device: protocols.Device | None = None,
) -> float:
    """p50 of one file in ms from a short run: an anchor for estimates, not for a report."""
    short = settings.model_copy(update={**SHORT, "processes": 2})
    plan = stopping.plan_of(short, 2)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        pixels = save_images(images, short.batch_size, Path(folder))
        request = _request((file, None), runtime, pixels, short, plan, seed)
        clock = _Clock(request, Bench("anchor", device), short.control_limit, plan.error, lambda *_: None)
        clock.more(0, plan.looks[-1])
        return clock.judge().dense.p50_ms


def save_images(images: Floats, batch_size: int, folder: Path) -> Path:
    """Write the images that batches are drawn from into the folder. Errors: DataError."""
    if images.ndim != 4 or len(images) == 0 or images.dtype != np.float32:
        raise DataError(
            f"images to time with must be float32 (M, C, H, W) with M >= 1, not {images.dtype} {images.shape}"
        )
    path = folder / "images.npy"
    np.save(path, np.ascontiguousarray(images[: BATCHES * batch_size]), allow_pickle=False)
    return path
