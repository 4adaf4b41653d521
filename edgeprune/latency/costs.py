"""What layers cost in a runtime, at the widths that matter: measured once, kept on disk, shared by runs.

The cache lies in the user's cache folder (`$XDG_CACHE_HOME/edgeprune`), one file for each runtime, version, number of
threads, batch size and machine; a device over ssh is a machine of its own, as it describes itself. Precision is
float32, as everywhere. It is written whole or not at all, and two runs that write at once lose nothing. Removing it
costs time, nothing else.

Kernels work in blocks of channels: a width that fills its last block costs no more than one that does not. So widths
are sampled in classes of alignment, and what lies between two samples is read off its own class alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import ValidationError

from edgeprune import protocols
from edgeprune.files import write_text, writing
from edgeprune.latency.copies import Operator
from edgeprune.latency.kernels import Point
from edgeprune.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeprune.records import Environment
    from edgeprune.types import Progress

_BLOCK = 16
"""Channels of the largest block that is known (AVX-512, float32): alignments beyond it make no difference."""
_A_CLASS = 4
"""Widths of one class of alignment that are sampled."""
_WHOLE_GRID = 25
"""Pairs up to which all are timed; beyond, the two axes and a few pairs off them."""
_SAVED_EVERY = 50
Table = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class CostCache(Record):
    """Figures by their keys, on one machine in one runtime: milliseconds of layers, or shares of the time of `network`
    (`edgeprune.latency.places`)."""

    schema_version: Literal["1"] = "1"
    runtime: str
    runtime_version: str
    machine: str
    threads: int
    batch_size: int
    precision: Literal["float32"] = "float32"
    network: str = ""
    points: dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where layers are timed: a runtime on a device (None: this machine), as it will serve the file."""

    runtime: str
    threads: int
    batch_size: int
    device: protocols.Device | None = None

    def path(self) -> Path:
        """The cache file."""
        version = re.sub(r"[^\w.+-]", "_", self.version())  # a device's word: no path
        name = f"{self.runtime}-{version}-t{self.threads}-b{self.batch_size}-{self.machine()[:12]}.json"
        return cache_folder() / "costs" / name

    def version(self) -> str:
        """The runtime's version where it is timed."""
        there = self.device.machine if self.device else None
        if there is not None:
            return there.packages.get(self.runtime, "unknown")
        version: str = protocols.find("runtime", self.runtime).version()
        return version

    def machine(self) -> str:
        """Digest of the machine that is timed."""
        there = self.device.machine if self.device else None
        return machine() if there is None else machine_there(there)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer whose cost is asked for: its operator, and the numbers of channels that it may have on each side.

    Both ascend, the dense number last.
    """

    operator: Operator
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]


def cache_folder() -> Path:
    """The user's cache folder for edgeprune, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "edgeprune"


def machine() -> str:
    """Digest of what a layer's cost depends on: the processor, its features, the kernel's name."""
    parts = [platform.machine(), platform.system()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part", "cache size")
        parts += sorted({line for line in lines if line.split(":")[0].strip() in wanted})
    except OSError:
        parts.append(platform.processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def machine_there(described: Environment) -> str:
    """The same digest of a device, from how it described itself; what it runs is no part of it."""
    system = described.system.split()
    parts = [*system[:1], *system[-1:], described.cpu, str(described.cores), *sorted(described.cpu_features)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def measured(bench: Bench, wanted: Sequence[Wanted], progress: Progress) -> tuple[Table, ...]:
    """Milliseconds of each layer, float64 (len(outputs), len(inputs)); what the cache lacks is timed and kept.

    Errors: MeasurementError when a process ends early (what it found is kept), OutputError when nothing can be kept.
    """
    known = times_of(bench, [point for layer in wanted for point in sampled(layer)], progress)
    return tuple(table(layer, known) for layer in wanted)


def times_of(bench: Bench, wanted: Sequence[Point], progress: Progress) -> dict[str, float]:
    """Milliseconds of each point by its key, from the cache or timed now. Errors: those of `measured`."""
    points = {point.key(): point for point in wanted}
    known = dict(read_figures(bench.path(), bench))
    missing = [point for key, point in points.items() if key not in known]
    fresh: dict[str, float] = {}

    def found(point: Point, ms: float) -> None:
        fresh[point.key()] = ms
        progress(f"timing layers in {bench.runtime}: {len(fresh)} of {len(missing)}", len(fresh) / len(missing))
        if len(fresh) % _SAVED_EVERY == 0:
            keep_figures(bench.path(), bench, fresh)

    if missing:
        try:
            device: protocols.Device = bench.device or protocols.find("device", "local")
            device.time_layers(bench.runtime, bench.threads, bench.batch_size, missing, found)
        finally:
            if fresh:
                keep_figures(bench.path(), bench, fresh)
    return {key: (known | fresh)[key] for key in points}


def sampled(layer: Wanted) -> tuple[Point, ...]:
    """The pairs of a layer that are timed: all of them when they are few, else both axes at the dense other side, and
    three pairs in the middle that say how the two go together."""
    if layer.operator.kind == "depthwise":
        pairs = [(width, width) for width in spread(layer.outputs)]
    else:
        outputs, inputs = spread(layer.outputs), spread(layer.inputs)
        if len(layer.outputs) * len(layer.inputs) <= _WHOLE_GRID:
            pairs = [(o, i) for o in layer.outputs for i in layer.inputs]
        else:
            pairs = [(o, inputs[-1]) for o in outputs] + [(outputs[-1], i) for i in inputs]
            middle = outputs[len(outputs) // 2], inputs[len(inputs) // 2]
            pairs += [middle, (outputs[0], inputs[0]), (middle[0], inputs[0]), (outputs[0], middle[1])]
    groups = layer.operator.groups
    fitting = [(o, i) for o, i in dict.fromkeys(pairs) if o % groups == 0 and i % groups == 0]
    return tuple(Point(operator=layer.operator, outputs=o, inputs=i) for o, i in fitting)


def spread(widths: Sequence[int]) -> tuple[int, ...]:
    """Widths to time: in every class of alignment the smallest, the largest and some between, and the last one."""
    chosen = {widths[-1], widths[0]}
    for members in _classes(widths).values():
        at = np.unique(np.round(np.linspace(0, len(members) - 1, min(len(members), _A_CLASS))).astype(int))
        chosen.update(members[int(position)] for position in at)
    return tuple(sorted(chosen))


def table(layer: Wanted, known: Mapping[str, float]) -> Table:
    """Milliseconds for all pairs from those that were timed, float64 (len(outputs), len(inputs)).

    Off the axes: start + (f(out) - start) (g(in) - start) / (dense - start), the product of the two axes above a cost
    of `start` that no width saves; `start` is what fits the timed pairs off the axes best.
    """
    cost = {(p.outputs, p.inputs): known[p.key()] for p in sampled(layer) if p.key() in known}
    if layer.operator.kind == "depthwise":
        line = along(layer.outputs, {o: ms for (o, _), ms in cost.items()})
        return np.tile(line[:, None], (1, len(layer.inputs)))
    dense = max(o for o, _ in cost), max(i for _, i in cost)
    f = along(layer.outputs, {o: ms for (o, i), ms in cost.items() if i == dense[1]})
    g = along(layer.inputs, {i: ms for (o, i), ms in cost.items() if o == dense[0]})
    top = cost[dense]
    rows, columns = ({width: at for at, width in enumerate(axis)} for axis in (layer.outputs, layer.inputs))

    def product(start: float) -> Table:
        return start + np.outer(f - start, g - start) / max(top - start, 1e-9)

    inner = [(rows[o], columns[i], ms) for (o, i), ms in cost.items() if o in rows and i in columns]
    starts = [share * min(f.min(), g.min()) for share in np.linspace(0, 0.95, 20)]
    best = min(starts, key=lambda s: sum(math.log(max(product(s)[o, i], 1e-6) / ms) ** 2 for o, i, ms in inner))
    found = product(best)
    for row, column, ms in inner:
        found[row, column] = ms
    return np.maximum(found, 1e-6)


def along(widths: Sequence[int], known: Mapping[int, float]) -> Table:
    """Costs of widths from those of some, float64 (len(widths),): straight lines inside each class of alignment.

    A class of which no width is known is read off all of them.
    """
    classes = _classes(sorted(known))
    found = []
    for width in widths:
        if width in known:
            found.append(known[width])
            continue
        members = classes.get(math.gcd(width, _BLOCK)) or sorted(known)
        if len(members) == 1 and len(known) > 1:
            members = sorted(known)
        nearest = members[-1] if width > members[-1] else members[0]
        inside = members[0] <= width <= members[-1]
        ms = float(np.interp(width, members, [known[member] for member in members]))
        found.append(ms if inside else ms * width / nearest)
    return np.array(found)


def _classes(widths: Iterable[int]) -> dict[int, list[int]]:
    classes: dict[int, list[int]] = {}
    for width in widths:
        classes.setdefault(math.gcd(width, _BLOCK), []).append(width)
    return classes


def read_figures(path: Path, bench: Bench) -> Mapping[str, float]:
    """What the cache has; nothing where it is missing, damaged, or of another version."""
    try:
        cache = CostCache.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return {}
    return cache.points if cache.machine == bench.machine() else {}


def keep_figures(path: Path, bench: Bench, fresh: Mapping[str, float], network: str = "") -> None:
    """Add to the cache what was timed; what another run has added meanwhile stays. OutputError when that cannot be."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        cache = CostCache(
            runtime=bench.runtime,
            runtime_version=bench.version(),
            machine=bench.machine(),
            threads=bench.threads,
            batch_size=bench.batch_size,
            network=network,
            points={**read_figures(path, bench), **fresh},
        )
        write_text(path, cache.to_json())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with writing(path):
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
