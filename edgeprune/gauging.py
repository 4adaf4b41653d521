"""How networks are told apart for a goal in time: files on the first runtime against a clock, beside the dense one's.

Promise: candidates are exported and run where the goal is to be met, and their files are gone afterwards. What they
were timed at steers a plan and stands beside it; a report's latencies are measured anew.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from edgeprune import protocols
from edgeprune.artifacts import Destination, export_network, timed_file
from edgeprune.errors import ExportError, ParityError
from edgeprune.keys import model_key
from edgeprune.latency.settings import LatencyConfig
from edgeprune.records import Artifact, LatencyFile, QuickRatio, Record, Side
from edgeprune.sweeping.sharing import Shared, digest_of
from edgeprune.types import ModelBundle

if TYPE_CHECKING:
    from edgeprune.export.stamping import Stamp
    from edgeprune.latency.costs import Table, Wanted
    from edgeprune.pruning.aim import Timing
    from edgeprune.types import Floats, Progress


class Candidate(Record):
    """A file that was made to be timed, relative to where it was made."""

    artifact: Artifact


Settled = Callable[["Timing"], bool]
"""Whether a timing is known well enough."""


class Timer(Protocol):
    """Times networks against the dense one: one of them the longer, the less `settled` its figure is."""

    def __call__(self, bundle: ModelBundle, settled: Settled = ...) -> Timing: ...

    def together(
        self, networks: Mapping[str, Callable[[], ModelBundle]], seconds: float, progress: Progress
    ) -> Mapping[str, float]:
        """Shares of the dense network's time, by key, of many networks of its structure in about so many seconds.

        Fewer than were given where time ran out, none where networks cannot be timed so. Errors: MeasurementError.
        """


class Gauge(Protocol):
    """How networks are told apart for a goal in time: by a clock (`Range`), or by an estimate."""

    @property
    def settings(self) -> LatencyConfig: ...

    @property
    def how(self) -> str:
        """What the plan's notes call it."""

    def opened(self) -> AbstractContextManager[Timer]:
        """A function that tells a network's time."""

    def dense_ms(self) -> float:
        """The time of the dense network."""

    def costs(self, wanted: Sequence[Wanted], progress: Progress) -> tuple[Table, ...]:
        """Milliseconds of layers, float64 (len(outputs), len(inputs)) each."""


def at_once(timing: Timing) -> bool:
    """Any figure will do."""
    return True


@dataclass(frozen=True, slots=True)
class Range:
    """Where candidates are timed against the dense network, not yet recovered: files on the first runtime."""

    dense: ModelBundle
    images: Floats
    inputs: Literal["real", "random"]
    settings: LatencyConfig
    seed: int
    device: protocols.Device | None = None
    shared: Shared = field(default_factory=Shared)

    @property
    def how(self) -> str:
        """Candidates are exported and timed."""
        from edgeprune.pruning.aim import MEASURED

        return MEASURED

    @contextmanager
    def opened(self) -> Iterator[Timer]:
        """Times networks; their files are gone after the block."""
        from edgeprune.export.stamping import Stamp

        with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
            root = Path(name)
            dense = self.file(self.dense, "dense", root)
            yield _Stand(self, root, dense, Stamp.of(self.dense, root / "dense.onnx"))

    def dense_ms(self) -> float:
        """p50 of the dense network."""
        with self.opened() as time:
            return time(self.dense).latency_ms

    def costs(self, wanted: Sequence[Wanted], progress: Progress) -> tuple[Table, ...]:
        """Milliseconds of layers where candidates are timed. Errors: MeasurementError, those of the device."""
        from edgeprune.latency.costs import Bench, measured

        settings = self.settings
        return measured(
            Bench(settings.runtimes[0], settings.threads, settings.batch_size, self.device), wanted, progress
        )

    def candidate(self, bundle: ModelBundle, root: Path, stamp: Stamp) -> LatencyFile:
        """A file with the dense network's graph where that is the candidate's, too, else torch's own."""
        try:
            return self.file(bundle, "compressed", root, stamp)
        except (ExportError, ParityError):
            return self.file(bundle, "compressed", root)

    def file(self, bundle: ModelBundle, side: Side, root: Path, stamp: Stamp | None = None) -> LatencyFile:
        """The network's file for the first runtime. Errors: ExportError, ParityError."""
        runtime: protocols.Runtime = protocols.find("runtime", self.settings.runtimes[0])

        def export() -> tuple[Candidate, list[Path]]:
            where = Destination(root, side, side)
            made = export_network(bundle, where, (runtime.name,), self.images, self.inputs, stamp)
            return Candidate(artifact=next(a for a in made.artifacts if a.format == runtime.format)), list(made.files)

        if bundle is not self.dense:
            return timed_file(root, export()[0].artifact)
        pixels = hashlib.sha256(self.images.tobytes()).hexdigest()
        inputs = {"dense": model_key(bundle), "runtime": [runtime.name, runtime.version()], "images": pixels}
        return timed_file(root, self.shared.piece("timed", Candidate, inputs, root, export)[0].artifact)


@dataclass(frozen=True, slots=True)
class _Stand:
    """A timer (`Timer`) at an open range: the dense network's file and its mould lie in `root`."""

    range: Range
    root: Path
    dense: LatencyFile
    stamp: Stamp

    def __call__(self, bundle: ModelBundle, settled: Settled = at_once) -> Timing:
        from edgeprune.latency.measure import quick_ratio

        where = self.range
        other = self.dense if bundle is where.dense else where.candidate(bundle, self.root, self.stamp)
        return _timing(
            quick_ratio(
                self.dense,
                other,
                where.settings.runtimes[0],
                where.images,
                where.settings,
                where.seed,
                where.device,
                lambda ratio: settled(_timing(ratio)),
            )
        )

    def together(
        self, networks: Mapping[str, Callable[[], ModelBundle]], seconds: float, progress: Progress
    ) -> Mapping[str, float]:
        """On this machine, of networks that the stamp can write."""
        from edgeprune.latency.costs import Bench
        from edgeprune.latency.measure import save_images
        from edgeprune.latency.places import shares_of

        where, settings = self.range, self.range.settings
        if not networks or (where.device is not None and where.device.machine is not None):
            return {}
        try:
            where.file(next(iter(networks.values()))(), "compressed", self.root, self.stamp)
        except (ExportError, ParityError):
            return {}

        def stamped(number: int, make: Callable[[], ModelBundle]) -> Path:
            bundle, path = make(), self.root / f"crowd{number}.onnx"
            if bundle is where.dense:
                return self.root / "dense.onnx"
            self.stamp.write(bundle, path)
            return path

        wanted = {key: partial(stamped, number, make) for number, (key, make) in enumerate(networks.items())}
        images = save_images(where.images, settings.batch_size, self.root)
        bench = Bench(settings.runtimes[0], settings.threads, settings.batch_size)
        reference = digest_of(model_key(where.dense)), self.root / "dense.onnx"
        return shares_of(bench, reference, images, wanted, seconds, progress)


def _timing(ratio: QuickRatio) -> Timing:
    from edgeprune.pruning.aim import Timing

    speedup, p50 = ratio.interval, ratio.compressed_interval
    ends = (speedup.low, speedup.high), (p50.low, p50.high)
    return Timing(ratio.value, ratio.compressed_p50_ms, *ends, ratio.dense_p50_ms)
