"""What a report says of a latency that was not measured: the estimate of a calibrated target, beside its own error.

Promise: nothing here stands where a measurement would; without a calibration for the very runtime, threads and batch
there is no estimate, and why not is said.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import EdgepruneError, UsageError
from edgeprune.latency.estimate import Calibration, predict
from edgeprune.latency.operators import work_of
from edgeprune.latency.profiles import Profile
from edgeprune.latency.settings import LatencyConfig
from edgeprune.protocols import Runtime, find
from edgeprune.records import Artifact, LatencyEstimate
from edgeprune.types import Shape


def estimates(
    profile: Profile, artifacts: tuple[Artifact, ...], folder: Path, shape: Shape, config: Config, console: Console
) -> tuple[LatencyEstimate, ...]:
    """An estimate of both files for every runtime that the profile has a fitting calibration of.

    `folder` is where the artifacts lie. The operators are those of the ONNX graph, which every runtime's file is made
    from. A network whose operators cannot be priced has no estimate; the console says why.
    """
    found = []
    for name in config.latency.runtimes:
        calibration = profile.estimates.get(name)
        if calibration is None:
            continue
        if (calibration.threads, 1) != (config.latency.threads, config.latency.batch_size):
            console.warn(f"no estimate for {name}: it was calibrated with {calibration.threads} thread(s) and batch 1")
            continue
        try:
            found.append(_estimate(profile.name, calibration, artifacts, folder, shape))
        except EdgepruneError as error:
            console.warn(f"no estimate for {name}: {error.what}")
    return tuple(found)


def calibration_for(profile: Profile, settings: LatencyConfig) -> Calibration:
    """What a goal in time is aimed by on a target that is not here: its calibration of the first runtime.

    Errors: UsageError that names the ways when there is none for that runtime, these threads and this batch size.
    """
    runtime, never = settings.runtimes[0], profile.measured == "never"
    found = profile.estimates.get(runtime)
    instead = "aim with --macs-ratio or --ratio, or here with --target cpu"
    if found is None:
        raise UsageError(
            f"a goal in time needs a device to measure on, and {profile.name} is not this machine",
            where=f"it has no calibration of {runtime} to estimate by, either",
            hint=instead
            if never
            else "name the device with --host; or calibrate the target once (edgeprune targets calibrate "
            f"{profile.name} --host user@address --write board.toml) and give --target board.toml; or {instead}",
        )
    if (found.threads, 1) != (settings.threads, settings.batch_size):
        raise UsageError(
            f"a goal in time on {profile.name} is aimed by its calibration of {runtime}, which is of another setting",
            where=f"calibrated: threads {found.threads}, batch 1; asked for: {settings.threads}, {settings.batch_size}",
            hint=f"use --threads {found.threads} --batch-size 1, name the device with --host, or {instead}",
        )
    return found


def _estimate(
    target: str, calibration: Calibration, artifacts: tuple[Artifact, ...], folder: Path, shape: Shape
) -> LatencyEstimate:
    runtime: Runtime = find("runtime", calibration.runtime)
    file = {(artifact.side, artifact.format): artifact for artifact in artifacts}
    dense, compressed = (
        predict(calibration.coefficients, work_of(folder / file[side, "onnx"].path, shape))
        for side in ("dense", "compressed")
    )
    return LatencyEstimate(
        target=target,
        runtime=calibration.runtime,
        threads=calibration.threads,
        dense_sha256=file["dense", runtime.format].sha256,
        compressed_sha256=file["compressed", runtime.format].sha256,
        dense_ms=dense,
        compressed_ms=compressed,
        method=calibration.method,
        source=calibration.source,
        anchors=calibration.anchors,
        error=calibration.error,
        largest=calibration.largest,
        within_10=calibration.within_10,
        tested=calibration.tested,
    )
