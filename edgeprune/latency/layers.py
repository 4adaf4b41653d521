"""Where the milliseconds went: a runtime's own profile of both files, node by node, brought to the network's layers.

Promise: taken in a fresh, pinned process, with profiling on, and said to be so; no budget is ever judged on it. A node
goes to a layer only where the exported graph says so: by its name, or by the one layer whose output it finishes
(a runtime that fuses a convolution with what follows names the pair after the last). What belongs to no layer, or
could be one of several, is listed under its operator.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from edgeprune import protocols
from edgeprune.errors import MeasurementError
from edgeprune.latency.alone import timing_alone
from edgeprune.latency.local import choose_cores
from edgeprune.records import LayerTime, NodeTime, Record

_WEIGHED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class ProfileJob(Record):
    """What the profiling process is asked for: both files, one after the other."""

    runtime: str
    files: tuple[str, str]
    images: str
    threads: int
    cores: tuple[int, ...]
    seconds: float


class ProfiledFile(Record):
    """One file's nodes, means over so many inferences."""

    inferences: int
    nodes: tuple[NodeTime, ...]


class Profiled(Record):
    """What the process answers: dense, then compressed."""

    files: tuple[ProfiledFile, ProfiledFile]


def profile_files(runtime: str, files: tuple[Path, Path], images: Path, threads: int, seconds: float) -> Profiled:
    """Profile both files in a fresh process; MeasurementError when it dies."""
    job = ProfileJob(
        runtime=runtime,
        files=(str(files[0]), str(files[1])),
        images=str(images),
        threads=threads,
        cores=choose_cores(threads),
        seconds=seconds,
    )
    command = [sys.executable, "-P", "-m", "edgeprune.latency.layers"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with timing_alone():
        done = subprocess.run(command, input=job.to_json().encode(), capture_output=True, env=environment, check=False)
    try:
        return Profiled.model_validate_json(done.stdout)
    except ValidationError as error:
        words = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        raise MeasurementError(
            f"the profiling process of {runtime} ended without a result", where="\n  ".join(words[-3:])
        ) from error


def layers_of(nodes: Sequence[NodeTime], graph: Any) -> dict[tuple[str, bool], float]:
    """Milliseconds by (name, is it a layer) of an ONNX graph's network; the rest is summed by operator."""
    makers = {output: node for node in graph.node for output in node.output}
    named = {node.name: node for node in graph.node}
    weights = {item.name for item in graph.initializer}
    places = [_candidates(node.name, named, makers, weights) for node in nodes]
    claimed = {next(iter(place)) for place in places if len(place) == 1}
    found: dict[tuple[str, bool], float] = {}
    for node, place in zip(nodes, places, strict=True):
        left = place - claimed if len(place) > 1 else place
        key = (next(iter(left)), True) if len(left) == 1 else (node.operator, False)
        found[key] = found.get(key, 0.0) + node.ms
    return found


def side_by_side(
    dense: Mapping[tuple[str, bool], float], compressed: Mapping[tuple[str, bool], float]
) -> tuple[LayerTime, ...]:
    """Both files' layers in the graph's order, then what belongs to none."""
    keys = sorted(dict.fromkeys([*dense, *compressed]), key=lambda key: not key[1])
    return tuple(
        LayerTime(name=key[0], is_layer=key[1], dense_ms=dense.get(key), compressed_ms=compressed.get(key))
        for key in keys
    )


def _candidates(name: str, named: Mapping[str, Any], makers: Mapping[str, Any], weights: set[str]) -> frozenset[str]:
    """The layers that a runtime's node may be: its own, or those whose outputs the named tensor comes from."""
    node = named.get(name) or makers.get(name)
    if node is None:
        return frozenset()
    if name in named and node.op_type not in _WEIGHED:
        return frozenset()
    found, left, seen = set(), [node], set()
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        layer = _layer(node, weights)
        if layer:
            found.add(layer)
        elif node.op_type not in _WEIGHED:
            left.extend(makers[source] for source in node.input if source in makers)
    return frozenset(found)


def _layer(node: Any, weights: set[str]) -> str:
    """The layer whose weight this node reads, as the network calls it; empty where the exporter kept no name."""
    if node.op_type not in _WEIGHED:
        return ""
    for source in node.input[1:2]:
        if source in weights and source.endswith(".weight"):
            return str(source).removesuffix(".weight").removeprefix("module.")
    return str(node.name)


def _serve() -> None:
    job = ProfileJob.model_validate_json(sys.stdin.buffer.read())
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    runtime = protocols.find("runtime", job.runtime)
    images = np.load(job.images, allow_pickle=False)
    found = []
    for path in job.files:
        count, nodes = runtime.node_times(Path(path), images, threads=job.threads, seconds=job.seconds)
        found.append(ProfiledFile(inferences=count, nodes=nodes))
    sys.stdout.write(Profiled(files=(found[0], found[1])).to_json())


if __name__ == "__main__":
    _serve()
