"""What whole networks take beside a reference, by their widths: timed in a crowd once, kept on disk, shared by runs.

One file for each network, runtime, version, number of threads, batch size and machine, beside the costs of layers
(`edgeprune.latency.costs`). Removing it costs time, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeprune.latency.costs import Bench, cache_folder, keep_figures, read_figures
from edgeprune.latency.crowd import CrowdJob, time_crowd
from edgeprune.latency.local import choose_cores
from edgeprune.types import Progress

_STEADY = 0.04
"""Rounds of a figure that are further apart are of a bad minute: it serves, and is not kept."""


def shares_of(
    bench: Bench,
    reference: tuple[str, Path],
    images: Path,
    wanted: Mapping[str, Callable[[], Path]],
    seconds: float,
    progress: Progress,
) -> dict[str, float]:
    """Shares of the reference's time, by key, of ONNX files: from the cache, or timed now for about so many seconds.

    `reference`: the digest of the network that is set beside all, and its ONNX file. `wanted`: who writes the file of a
    key, called for those that are timed. Errors: UsageError (threads), MeasurementError, OutputError, those of writing.
    """
    digest, beside = reference
    path = _path(bench, digest)
    known = read_figures(path, bench)
    paths = {key: wanted[key]() for key in wanted if key not in known}
    fresh = {key: 1.0 for key, file in paths.items() if file == beside}
    missing, steady = [key for key in paths if key not in fresh], dict[str, float]()
    if missing:
        until = time.monotonic() + seconds

        def found(number: int, share: float, apart: float) -> bool:
            fresh[missing[number]] = share
            if apart <= _STEADY:
                steady[missing[number]] = share
            progress(f"timing networks in {bench.runtime}: {number + 1} of {len(missing)}", (number + 1) / len(missing))
            return time.monotonic() < until

        job = CrowdJob(
            runtime=bench.runtime,
            threads=bench.threads,
            batch_size=bench.batch_size,
            cores=choose_cores(bench.threads),
            images=str(images),
            reference=str(beside),
            files=tuple(str(paths[key]) for key in missing),
        )
        try:
            time_crowd(job, found)
        finally:
            if steady:
                keep_figures(path, bench, steady, digest)
    return {key: share for key, share in {**known, **fresh}.items() if key in wanted}


def _path(bench: Bench, digest: str) -> Path:
    return cache_folder() / "places" / f"{bench.path().stem}-{digest[:24]}.json"
