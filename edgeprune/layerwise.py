"""The stage that profiles both files layer by layer in the first runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune import protocols
from edgeprune.records import LayerProfile, Side, Unmeasured

if TYPE_CHECKING:
    from edgeprune.stages import Exported
    from edgeprune.steps import Run

LONGEST = 1.0  # seconds of each file
_IMAGES = 32


def layer_times(run: Run, exported: Exported) -> LayerProfile | Unmeasured:
    """Both files' layers side by side; why not, where the target is elsewhere or the runtime cannot profile."""
    name = run.config.latency.runtimes[0]
    if not run.profile.is_local:
        return Unmeasured(unmeasured=f"{run.profile.name} is not this machine")
    if not hasattr(protocols.find("runtime", name), "node_times"):
        return Unmeasured(unmeasured=f"{name} does not say what its nodes take")
    inputs = {**exported.digests(), "latency": run.config.latency.model_dump(), "seed": run.config.run.seed}
    return run.folder.stage("layers", LayerProfile, inputs, lambda: (_profile(run, exported, name), []))


def _profile(run: Run, exported: Exported, name: str) -> LayerProfile:
    import onnx

    from edgeprune.latency.layers import layers_of, profile_files, side_by_side

    sides: tuple[Side, Side] = ("dense", "compressed")
    format, settings = protocols.find("runtime", name).format, run.config.latency
    files = [exported.of(side, format) for side in sides]
    seconds = min(LONGEST, settings.blocks * settings.block_ms / 1000)
    with run.console.task(f"profiling layers in {name}"), tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        images = Path(folder) / "images.npy"
        np.save(images, run.images(_IMAGES), allow_pickle=False)
        paths = run.folder.path / files[0].path, run.folder.path / files[1].path
        found = profile_files(name, paths, images, settings.threads, seconds)
    times = []
    for side, profiled in zip(sides, found.files, strict=True):
        graph = onnx.load(str(run.folder.path / exported.of(side, "onnx").path), load_external_data=False).graph
        times.append(layers_of(profiled.nodes, graph))
    return LayerProfile(
        runtime=name,
        threads=settings.threads,
        dense_sha256=files[0].sha256,
        compressed_sha256=files[1].sha256,
        inferences=(found.files[0].inferences, found.files[1].inferences),
        layers=side_by_side(times[0], times[1]),
    )
