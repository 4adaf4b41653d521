"""`edgeprune compare RUN_A RUN_B`: is today's file better than last release's, and how sure is that?

Promise: what both runs judged on the same images is compared image by image, from their evidence; what was not is
compared unpaired and says why. Times are compared only where runtime, threads, batch, target and machine agree, and
never pretend to have been interleaved. What cannot be compared is an `Unmeasured` with its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import ExitCode, UsageError
from edgeprune.files import sha256_of
from edgeprune.records import (
    AttackedFile,
    Interval,
    LatencyComparison,
    LayerPair,
    Paired,
    PairedDrop,
    Proportion,
    Ratio,
    Report,
    RunComparison,
    RunName,
    TimesCompared,
    Unmeasured,
    Unpaired,
    Weighed,
    read_record,
)
from edgeprune.robustness.statistics import paired_drop, proportion

if TYPE_CHECKING:
    from collections.abc import Sequence

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

EVIDENCE = "evidence.npz"
LEVEL = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a run's evidence says of its compressed file, image by image (N,)."""

    ids: Ints
    labels: Ints
    clean: Bools
    robust: Bools


@dataclass(frozen=True, slots=True)
class OneRun:
    """A finished run: its folder and its report."""

    folder: Path
    report: Report

    @classmethod
    def read(cls, path: Path) -> OneRun:
        """From a run folder or its report.json; UsageError when there is no report, or none of this schema."""
        file = path / "report.json" if path.is_dir() else path
        report = read_record(Report, file)
        if not any((item.side, item.format) == ("compressed", "onnx") for item in report.artifacts):
            raise UsageError(f"the run of {file} exported no file", hint="`edgeprune compress` does")
        return cls(file.parent, report)

    def name(self) -> RunName:
        shipped = self.report.artifact("compressed")
        made = self.report.environment.edgeprune
        return RunName(
            folder=str(self.folder),
            created=self.report.created,
            edgeprune=made,
            model=self.report.model.name,
            sha256=shipped.sha256,
        )

    def seen(self) -> Seen | Unmeasured:
        """The evidence; why there is none, when it is absent or not the one that the report names."""
        path = self.folder / EVIDENCE
        if self.report.evidence_sha256 is None:
            return Unmeasured(unmeasured="it was not attacked, so there is no evidence image by image")
        if not path.is_file() or sha256_of(path) != self.report.evidence_sha256:
            return Unmeasured(unmeasured=f"{path} is not the evidence that its report names")
        with np.load(path, allow_pickle=False) as arrays:
            labels, clean = arrays["labels"], arrays["compressed_clean"]
            right = np.asarray(clean == labels)
            return Seen(arrays["ids"], labels, right, right & ~arrays["compressed_fell"])

    def test_digest(self) -> str | None:
        return next((split.digest for split in self.report.data if split.role == "test"), None)


def compare_runs(before: OneRun, after: OneRun, interleaved: LatencyComparison | None = None) -> RunComparison:
    """The comparison; `interleaved` is a timing of both files in one run, which takes the place of their reports'."""
    accuracy, robustness = _accuracy(before, after), _robustness(before, after)
    latency = (_measured(interleaved),) if interleaved else _latency(before.report, after.report)
    better, worse, undecided = _sorted(accuracy, robustness, latency)
    return RunComparison(
        before=before.name(),
        after=after.name(),
        accuracy=accuracy,
        robustness=robustness,
        latency=latency,
        weights=_weights(before.report, after.report),
        layers=_layers(before.report, after.report),
        better=better,
        worse=worse,
        undecided=undecided,
    )


def exit_code(found: RunComparison) -> ExitCode:
    """With --gate: 1 where something is shown to be worse, 4 where something could not be decided, else 0."""
    if found.worse:
        return ExitCode.GATE_FAILED
    return ExitCode.INCONCLUSIVE if found.undecided else ExitCode.DONE


# -------------------------------------------------------------------------------------------- accuracy, robustness


def _accuracy(before: OneRun, after: OneRun) -> Paired | Unpaired | Unmeasured:
    """On the images of the evidence where they are the same, else each run's own figure in the same runtime."""
    if other := _other_task(before.report, after.report):
        return Unmeasured(unmeasured=other)
    pair = _pair(before, after)
    if not isinstance(pair, str):
        return _paired("clean accuracy", pair[0].clean, pair[1].clean)
    shares = [_clean_share(run.report) for run in (before, after)]
    if shares[0] is None or shares[1] is None:
        return Unmeasured(unmeasured="one of the runs measured no accuracy")
    return _unpaired("clean accuracy", pair, shares[0], shares[1])


def _robustness(before: OneRun, after: OneRun) -> Paired | Unpaired | Unmeasured:
    first, second = before.report.robustness, after.report.robustness
    if other := _other_task(before.report, after.report):
        return Unmeasured(unmeasured=other)
    for item in (first, second):
        if isinstance(item, Unmeasured):
            return item
        if not item.conclusive:
            return Unmeasured(unmeasured="an attack was inconclusive: " + "; ".join(item.warnings))
    assert not isinstance(first, Unmeasured)
    assert not isinstance(second, Unmeasured)
    ignored = {"seed", "samples", "samples_digest"}
    if first.threat.model_dump(exclude=ignored) != second.threat.model_dump(exclude=ignored):
        return Unmeasured(unmeasured="the runs were attacked differently: another epsilon, norm, attack or effort")
    if first.runtime.name != second.runtime.name:
        return Unmeasured(unmeasured=f"attacked in {first.runtime.name} and in {second.runtime.name}")
    what = f"robust accuracy, {first.threat.attack} {first.threat.norm} {first.threat.epsilon}"
    pair = _pair(before, after)
    if not isinstance(pair, str):
        return _paired(what, pair[0].robust, pair[1].robust)
    files: list[AttackedFile] = [first.compressed, second.compressed]
    return _unpaired(what, pair, files[0].robust, files[1].robust)


def _other_task(before: Report, after: Report) -> str:
    """Why two networks cannot be asked the same; empty where they can."""
    inputs, classes = (
        [getattr(report.model, name) for report in (before, after)] for name in ("input_shape", "classes")
    )
    if inputs[0] != inputs[1]:
        shapes = (" × ".join(map(str, shape)) for shape in inputs)
        return f"another task: the networks take {' and '.join(shapes)}"
    if len(classes[0]) != len(classes[1]):
        return f"another task: the networks tell {len(classes[0])} and {len(classes[1])} classes apart"
    return ""


def _pair(before: OneRun, after: OneRun) -> tuple[Seen, Seen] | str:
    """Both evidences on the images that they share, in one order; or why they cannot be paired."""
    if before.test_digest() is None or before.test_digest() != after.test_digest():
        return "the runs were judged on different test data"
    found = []
    for run in (before, after):
        seen = run.seen()
        if isinstance(seen, Unmeasured):
            return seen.unmeasured
        found.append(seen)
    _, first, second = np.intersect1d(found[0].ids, found[1].ids, assume_unique=True, return_indices=True)
    if not len(first):
        return "the runs attacked different images"
    pair = _taken(found[0], first), _taken(found[1], second)
    if not np.array_equal(pair[0].labels, pair[1].labels):
        return "the labels of the same images differ"
    return pair


def _taken(seen: Seen, places: Ints) -> Seen:
    return Seen(seen.ids[places], seen.labels[places], seen.clean[places], seen.robust[places])


def _paired(what: str, before: Bools, after: Bools) -> Paired:
    shares = [proportion(int(each.sum()), len(each)) for each in (before, after)]
    return Paired(what=what, before=shares[0], after=shares[1], drop=paired_drop(before, after))


def _unpaired(what: str, why: str, before: Proportion, after: Proportion) -> Unpaired:
    return Unpaired(what=what, why=why, before=before, after=after, difference=newcombe(before, after))


def newcombe(before: Proportion, after: Proportion) -> Interval:
    """95 % interval of `before` minus `after`, independent samples: Newcombe's hybrid of Wilson intervals (1998)."""
    (low_b, high_b), (low_a, high_a) = _wilson(before), _wilson(after)
    difference = before.value - after.value
    down = math.hypot(before.value - low_b, high_a - after.value)
    up = math.hypot(high_b - before.value, after.value - low_a)
    return Interval(low=difference - down, high=difference + up)


def _wilson(share: Proportion, z: float = 1.959964) -> tuple[float, float]:
    n, p = share.total, share.value
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    arm = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - arm, centre + arm


def _clean_share(report: Report) -> Proportion | None:
    shipped = report.artifact("compressed").sha256
    if isinstance(report.accuracy, Unmeasured):
        return None
    return next((item.compressed for item in report.accuracy if item.compressed_sha256 == shipped), None)


# ----------------------------------------------------------------------------------------------------- latency


def _latency(before: Report, after: Report) -> tuple[TimesCompared, ...] | Unmeasured:
    for report in (before, after):
        if isinstance(report.latency, Unmeasured):
            return report.latency
    assert not isinstance(before.latency, Unmeasured)
    assert not isinstance(after.latency, Unmeasured)
    if before.environment.cpu != after.environment.cpu and any(t.kind == "measured-local" for t in after.latency):
        cpus = f"{before.environment.cpu} and {after.environment.cpu}"
        return Unmeasured(unmeasured=f"measured on different machines: {cpus}; time both here with --measure")
    pairs = [(one, other) for one in before.latency for other in after.latency if _same_place(one, other)]
    if not pairs:
        return Unmeasured(
            unmeasured="no target, runtime, precision, threads and batch size in common; time both with --measure"
        )
    return tuple(_times(one, other) for one, other in pairs)


def _same_place(one: LatencyComparison, other: LatencyComparison) -> bool:
    def place(item: LatencyComparison) -> tuple[object, ...]:
        runtime = item.runtime
        return item.kind, item.target, runtime.name, runtime.precision, runtime.threads, item.batch_size

    return place(one) == place(other) and one.compressed is not None and other.compressed is not None


def _times(one: LatencyComparison, other: LatencyComparison) -> TimesCompared:
    assert one.compressed is not None
    assert other.compressed is not None
    first, second = one.compressed, other.compressed
    centre = math.log(first.p50_ms / second.p50_ms)
    down = math.hypot(_arm(first.p50_ms, first.p50_interval.low), _arm(second.p50_ms, second.p50_interval.high))
    up = math.hypot(_arm(first.p50_ms, first.p50_interval.high), _arm(second.p50_ms, second.p50_interval.low))
    notes = ["timed in two runs, not interleaved: --measure times both files together"]
    if one.runtime.version != other.runtime.version:
        notes.append(f"{one.runtime.name} {one.runtime.version} and {other.runtime.version}")
    interval = Interval(low=math.exp(centre - down), high=math.exp(centre + up))
    return TimesCompared(
        runtime=one.runtime.name,
        target=one.target,
        before_ms=first.p50_ms,
        before_interval=first.p50_interval,
        after_ms=second.p50_ms,
        after_interval=second.p50_interval,
        ratio=Ratio(value=math.exp(centre), interval=interval),
        interleaved=False,
        conclusive="inconclusive" not in (one.verdict, other.verdict),
        notes=tuple(notes),
    )


def _arm(value: float, end: float) -> float:
    return abs(math.log(end / value)) if end > 0 else math.inf


def _measured(item: LatencyComparison) -> TimesCompared:
    """An interleaved timing: the run before stands where the dense file does."""
    assert item.compressed is not None
    assert item.speedup is not None
    return TimesCompared(
        runtime=item.runtime.name,
        target=item.target,
        before_ms=item.dense.p50_ms,
        before_interval=item.dense.p50_interval,
        after_ms=item.compressed.p50_ms,
        after_interval=item.compressed.p50_interval,
        ratio=item.speedup,
        interleaved=True,
        conclusive=item.verdict != "inconclusive",
        notes=item.notes,
    )


# ------------------------------------------------------------------------------------------- counts, conclusions


def _weights(before: Report, after: Report) -> tuple[Weighed, ...]:
    sizes = [
        Weighed(what=f"file size, {other.path}", unit="bytes", before=one.total_bytes, after=other.total_bytes)
        for one in before.artifacts
        for other in after.artifacts
        if one.side == other.side == "compressed" and one.format == other.format and one.precision == other.precision
    ]
    counts = (
        ("MACs", before.plan.macs, after.plan.macs),
        ("parameters", before.plan.parameters, after.plan.parameters),
    )
    return (*sizes, *(Weighed(what=what, unit="count", before=one, after=other) for what, one, other in counts))


def _layers(before: Report, after: Report) -> tuple[LayerPair, ...]:
    """Layers whose widths differ, in the order of the first run."""
    first, second = ({layer.name: layer.channels for layer in report.layers} for report in (before, after))
    names = dict.fromkeys([*first, *second])
    return tuple(
        LayerPair(name=name, before=first.get(name), after=second.get(name))
        for name in names
        if first.get(name) != second.get(name)
    )


Compared = Paired | Unpaired | Unmeasured


def _sorted(
    accuracy: Compared, robustness: Compared, latency: Sequence[TimesCompared] | Unmeasured
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(better, worse, undecided): a difference counts when its test or its interval shows it at 95 %."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name, item in (("clean accuracy", accuracy), ("robust accuracy", robustness)):
        where = "undecided" if isinstance(item, Unmeasured) else _direction(item)
        if where:
            found[where].append(name)
    if isinstance(latency, Unmeasured):
        found["undecided"].append("latency")
    else:
        for times in latency:
            low, high = times.ratio.interval.low, times.ratio.interval.high
            where = "undecided" if not times.conclusive else "better" if low > 1 else "worse" if high < 1 else ""
            if where:
                found[where].append(f"latency in {times.runtime}")
    return tuple(found["better"]), tuple(found["worse"]), tuple(found["undecided"])


def _direction(item: Paired | Unpaired) -> str:
    if isinstance(item, Unpaired):
        return "worse" if item.difference.low > 0 else "better" if item.difference.high < 0 else ""
    drop: PairedDrop = item.drop
    if drop.p_value >= LEVEL:
        return ""
    return "worse" if drop.value > 0 else "better"


def files_of(before: OneRun, after: OneRun, format: str = "onnx") -> tuple[Path, Path]:
    """Both shipped files, for a timing of the two together; UsageError when one is not the measured one."""
    found = []
    for run in (before, after):
        artifact = run.report.artifact("compressed", format)
        path = run.folder / artifact.path
        if not path.is_file() or sha256_of(path) != artifact.sha256:
            raise UsageError(f"{path} is not the file that its report measured", hint="compare without --measure")
        found.append(path)
    return found[0], found[1]
