"""What whole networks take beside a reference, by their widths: timed in a crowd once, kept on disk, shared by runs.

One file for each network, runtime, version, number of threads, batch size and machine, beside the costs of layers
(`edgeprune.latency.costs`). Removing it costs time, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from edgeprune.files import write_text, writing
from edgeprune.latency.costs import Bench, cache_folder, locked
from edgeprune.latency.crowd import CrowdJob, time_crowd
from edgeprune.latency.local import choose_cores
from edgeprune.records import Record
from edgeprune.types import Progress

_STEADY = 0.04
"""Rounds of a figure that are further apart are of a bad minute: it serves, and is not kept."""


class PlaceCache(Record):
    """Shares of the reference's time by a network's key, on one machine in one runtime."""

    schema_version: Literal["1"] = "1"
    runtime: str
    runtime_version: str
    machine: str
    threads: int
    batch_size: int
    network: str
    shares: dict[str, float]


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
    known = _read(path, bench)
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
                _keep(path, bench, digest, steady)
    return {key: share for key, share in (known | fresh).items() if key in wanted}


def _path(bench: Bench, digest: str) -> Path:
    return cache_folder() / "places" / f"{bench.path().stem}-{digest[:24]}.json"


def _read(path: Path, bench: Bench) -> dict[str, float]:
    """What the cache has; nothing where it is missing, damaged, or of another version."""
    try:
        cache = PlaceCache.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return {}
    return dict(cache.shares) if cache.machine == bench.machine() else {}


def _keep(path: Path, bench: Bench, digest: str, fresh: Mapping[str, float]) -> None:
    """Add to the cache what was timed; what another run has added meanwhile stays."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        cache = PlaceCache(
            runtime=bench.runtime,
            runtime_version=bench.version(),
            machine=bench.machine(),
            threads=bench.threads,
            batch_size=bench.batch_size,
            network=digest,
            shares={**_read(path, bench), **fresh},
        )
        write_text(path, cache.to_json())
