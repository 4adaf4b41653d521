"""What a report knows about one budget of one file: the number, the bound that is judged, or why there is none.

Only measurements of the very file (by sha256) are found. A number that cannot be true is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from edgeprune.budgets import AT_LEAST
from edgeprune.records import (
    AccuracyComparison,
    Artifact,
    Interval,
    LatencyComparison,
    LatencyEstimate,
    PairedDrop,
    Proportion,
    Report,
    RobustnessComparison,
    Unmeasured,
)
from edgeprune.reporting.numbers import milliseconds, percent, points, short, size, span, times

Cause = Literal["", "attack", "images", "noise", "confidence"]

ON_DATA = frozenset({"accuracy", "robust_accuracy", "accuracy_drop", "robust_accuracy_drop"})
"""Budgets that are judged on test images."""

_M = TypeVar("_M")
_NOTHING = 1e-9
_SLACK = 1e-6  # an interval's end may miss its own point by rounding, not by more


@dataclass(frozen=True, slots=True)
class Finding:
    """What a report knows about one budget of one file.

    `missing` and `doubt` say why there is no number, or why it supports no conclusion (`cause` in a word); `basis`
    what was judged, on how many `images`. `stale` says why the number is about something else. `places` are the
    runtime, precision and target that it was measured in.
    """

    subject: str
    actual: float | None = None
    bound: float | None = None
    confidence: float | None = None
    basis: str = ""
    doubt: str = ""
    cause: Cause = ""
    missing: str = ""
    images: int = 0
    stale: str = ""
    places: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Case:
    """One file of a report, the one-sided confidence that its bounds must have, and what may count.

    `test_digest`: how the digest of the test data must begin ("": any data).
    """

    report: Report
    artifact: Artifact
    confidence: float
    allow_estimates: bool = False
    test_digest: str = ""

    @property
    def places(self) -> frozenset[str]:
        """The runtimes that were found to serve the file, its format and precision, and the target."""
        served = {item.runtime.name for item in self.report.parity if item.sha256 == self.artifact.sha256}
        return frozenset({*served, self.artifact.format, self.artifact.precision, self.report.target.name})

    def served_by(self, runtime: str, target: str = "") -> frozenset[str]:
        """Where a number of this file was measured."""
        return frozenset({runtime, self.artifact.precision, target or self.report.target.name})


def findings(metric: str, case: Case, limit: float) -> tuple[Finding, ...]:
    """At least one finding; several where several runtimes measured the file."""
    found = (_sane(metric, finding) for finding in _FINDERS[metric](case, limit))
    stale = _other_data(case) if metric in ON_DATA else ""
    return tuple(replace(finding, stale=stale, places=finding.places or case.places) for finding in found)


def _other_data(case: Case) -> str:
    """Why the images behind the report are not those that the budget names; empty when they are."""
    for split in case.report.data:
        if split.role == "test" and not split.digest.startswith(case.test_digest):
            return (
                f"measured on other test data: {split.name} has the digest {short(split.digest)}, "
                f"the budget asks for {short(case.test_digest)}"
            )
    return ""


def _sane(metric: str, finding: Finding) -> Finding:
    """The finding, or one without numbers when they cannot be true."""
    actual, bound = finding.actual, finding.bound
    if actual is None or bound is None:
        return replace(finding, actual=None, bound=None, missing=finding.missing or "it was not measured")
    numbers = all(math.isfinite(value) for value in (actual, bound))
    if metric.endswith("_drop"):
        possible = numbers and -1 <= actual <= 1 and actual - _SLACK <= bound <= 1 + _SLACK
    elif metric in ON_DATA:
        possible = numbers and 0 <= bound <= actual + _SLACK <= 1 + 2 * _SLACK
    else:
        excess = actual - bound if metric in AT_LEAST else bound - actual
        possible = numbers and actual > 0 and bound > 0 and excess >= -_SLACK * actual
    if possible:
        return finding
    nonsense = f"the report's numbers make no sense: {actual:g} with the bound {bound:g}"
    return replace(finding, actual=None, bound=None, confidence=None, missing=nonsense)


def _accuracy(case: Case, limit: float) -> Iterable[Finding]:
    found = _about(case, case.report.accuracy, lambda item: item.compressed_sha256)
    if isinstance(found, Finding):
        return (found,)
    return tuple(_also_there(case, item, _drop(case, item.drop, _where(item), limit)) for item in _judged(case, found))


def _judged(case: Case, found: tuple[AccuracyComparison, ...]) -> tuple[AccuracyComparison, ...]:
    """Without those on a device that gave the labels of this machine on all its sample: all test data say more."""
    return tuple(item for item in found if not (item.target and _agrees(case, item)))


def _agrees(case: Case, item: AccuracyComparison) -> bool:
    """The device gave this machine's labels for both files."""
    there = {
        parity.sha256: parity.same_labels
        for parity in case.report.parity
        if (parity.target, parity.runtime.name) == (item.target, item.runtime.name)
    }
    return all(there.get(sha256, False) for sha256 in (item.dense_sha256, item.compressed_sha256))


def _also_there(case: Case, item: AccuracyComparison, finding: Finding) -> Finding:
    """The finding, and where a device gave the same labels."""
    if isinstance(case.report.accuracy, Unmeasured) or item.target or not finding.basis:
        return finding
    agreed = (
        f"{other.target} gives the same labels ({other.dense.total:,} images)"
        for other in case.report.accuracy
        if other.target and other.runtime.name == item.runtime.name and _agrees(case, other)
    )
    return replace(finding, basis="; ".join((finding.basis, *agreed)))


def _where(item: AccuracyComparison) -> str:
    return f"{item.runtime.name} on {item.target}" if item.target else item.runtime.name


def _accuracy_floor(case: Case, limit: float) -> Iterable[Finding]:
    found = _about(case, case.report.accuracy, lambda item: item.compressed_sha256)
    if isinstance(found, Finding):
        return (found,)
    floors = ((item, _floor(case, item.compressed, _where(item), limit)) for item in _judged(case, found))
    return tuple(_also_there(case, item, finding) for item, finding in floors)


def _robust_floor(case: Case, limit: float) -> Iterable[Finding]:
    found = _attacks(case)
    if isinstance(found, Finding):
        return (found,)
    return tuple(
        _believed(item, _floor(_looked(case, item), item.compressed.robust, _attack_of(item), limit)) for item in found
    )


def _floor(case: Case, share: Proportion, subject: str, limit: float) -> Finding:
    """A share of the images and its lower bound at the budget's confidence."""
    if not 0 <= share.count <= share.total or not share.total:
        return Finding(subject, missing=f"the report's counts make no sense: {share.count} of {share.total}")
    bound, confidence = share.interval.low, (1 + share.interval.confidence) / 2
    if confidence < case.confidence - 1e-9:
        from edgeprune.robustness.statistics import proportion

        confidence = case.confidence
        bound = proportion(share.count, share.total, 2 * confidence - 1).interval.low
    basis = f"{share.count:,} of {share.total:,} images"
    places = case.served_by(subject.partition(",")[0].partition(" on ")[0])
    finding = Finding(subject, share.value, bound, confidence, basis=basis, images=share.total, places=places)
    best = 1 - least_bound(share.total, confidence)
    if bound < limit <= share.value and best < limit:
        doubt = f"{share.total:,} images are too few: all of them right would show no more than {percent(best)}"
        return replace(finding, doubt=doubt, cause="images")
    return finding


def _robustness(case: Case, limit: float) -> Iterable[Finding]:
    found = _attacks(case)
    if isinstance(found, Finding):
        return (found,)
    return tuple(_attacked(case, item, limit) for item in found)


def _attacks(case: Case) -> tuple[RobustnessComparison, ...] | Finding:
    measured = case.report.robustness
    every = measured if isinstance(measured, Unmeasured) else (measured,)
    return _about(case, every, lambda item: item.compressed.sha256)


def _attack_of(item: RobustnessComparison) -> str:
    return f"{item.runtime.name}, {item.threat.attack} {item.threat.norm} {item.threat.epsilon}"


def _attacked(case: Case, item: RobustnessComparison, limit: float) -> Finding:
    finding = _believed(item, _drop(_looked(case, item), item.drop, _attack_of(item), limit))
    if item.dense.robust.count == 0 and finding.basis and not finding.doubt:
        return replace(finding, basis=f"{finding.basis}; the dense file has no robust accuracy to lose")
    return finding


def _looked(case: Case, item: RobustnessComparison) -> Case:
    """The case at the confidence of one look, where the attack looked at its bound more than once.

    Every look has its part of the allowed error, so that a bound which was looked for until it held still holds.
    """
    looks = item.sequential.looks if item.sequential else 1
    return replace(case, confidence=1 - (1 - case.confidence) / looks)


def _believed(item: RobustnessComparison, finding: Finding) -> Finding:
    """The finding, or one in doubt when the attack doubts itself."""
    if item.conclusive:
        return finding
    reasons = "; ".join(item.warnings) or "its own checks did not hold"
    return replace(finding, doubt=f"the attack is not conclusive: {reasons}", cause="attack")


def _drop(case: Case, drop: PairedDrop, subject: str, limit: float) -> Finding:
    """A paired drop and its bound at the budget's confidence."""
    counts = (drop.total, drop.dense_only, drop.compressed_only)
    if drop.total <= 0 or min(counts) < 0 or drop.dense_only + drop.compressed_only > drop.total:
        return Finding(subject, missing=f"the report's counts make no sense: {counts}")
    basis = f"{drop.total:,} paired images: {drop.dense_only:,} lost, {drop.compressed_only:,} won"
    bound = _upper(drop, case.confidence)
    places = case.served_by(subject.partition(",")[0].partition(" on ")[0])
    finding = Finding(subject, drop.value, bound, case.confidence, basis=basis, images=drop.total, places=places)
    if bound > limit >= drop.value and least_bound(drop.total, case.confidence) > limit:
        return replace(finding, doubt=too_few(drop.total, limit, case.confidence), cause="images")
    return finding


def _upper(drop: PairedDrop, confidence: float) -> float:
    """The record's bound where it has the confidence asked for, else the same function of the same counts."""
    if drop.confidence == confidence:
        return drop.upper
    from edgeprune.robustness.statistics import upper_bound

    return upper_bound(drop.dense_only, drop.compressed_only, drop.total, confidence)


def too_few(total: int, limit: float, confidence: float) -> str:
    """Says that `total` images cannot support the tolerance `limit`, and how many could."""
    needed = least_samples(limit, confidence)
    enough = "no number of images can show a drop of zero" if needed is None else f"it takes at least {needed:,}"
    possible = points(least_bound(total, confidence))
    return f"{total:,} images are too few: a drop of {possible} could go unseen; {enough}"


def _latency(case: Case, _limit: float) -> Iterable[Finding]:
    if _only_estimates(case):
        return _estimated(case, lambda item: (item.compressed_ms, item.compressed_ms * (1 + item.largest)))
    return _each_timing(case, lambda item: _ceiling(case, item, "p50"))


def _p90(case: Case, _limit: float) -> Iterable[Finding]:
    return _each_timing(case, lambda item: _ceiling(case, item, "p90"))


def _ceiling(case: Case, item: LatencyComparison, quantile: Literal["p50", "p90"]) -> Finding:
    stats = item.compressed
    if stats is None:
        return Finding(_place(item), missing="the dense file alone was timed")
    if quantile == "p50":
        return _timed(case, item, stats.p50_ms, stats.p50_interval, "high")
    if stats.p90_ms is None or stats.p90_interval is None:
        return Finding(_place(item), missing=f"{stats.samples:,} samples of {item.processes} process(es) give no p90")
    return _timed(case, item, stats.p90_ms, stats.p90_interval, "high")


def _speedup(case: Case, _limit: float) -> Iterable[Finding]:
    if _only_estimates(case):
        return _estimated(case, _faster)
    return _each_timing(
        case,
        lambda item: (
            Finding(_place(item), missing="no speed-up was measured")
            if item.speedup is None
            else _timed(case, item, item.speedup.value, item.speedup.interval, "low")
        ),
    )


def _memory(case: Case, _limit: float) -> Iterable[Finding]:
    def peak(item: LatencyComparison) -> Finding:
        found = item.compressed.peak_rss_bytes if item.compressed else None
        if found is None:
            return Finding(_place(item), missing="its peak memory was not measured")
        return Finding(_place(item), found, found, basis=f"{size(found)} in a process that served it alone")

    return _each_timing(case, peak)


def _each_timing(case: Case, find: Callable[[LatencyComparison], Finding]) -> Iterable[Finding]:
    """A finding for every timing of the file; an estimate is none unless the budget lets it count."""
    found = _about(case, case.report.latency, lambda item: item.compressed.sha256 if item.compressed else "")
    if isinstance(found, Finding):
        return (found,)
    findings = []
    for item in found:
        places = case.served_by(item.runtime.name, item.target)
        if not item.kind.startswith("measured") and not case.allow_estimates:
            missing = f"{item.kind}, not measured, and allow_estimates is not set"
            findings.append(Finding(_place(item), missing=missing, places=places))
            continue
        findings.append(replace(find(item), places=places))
    return tuple(findings)


def _only_estimates(case: Case) -> bool:
    return isinstance(case.report.latency, Unmeasured) and any(
        item.compressed_sha256 == case.artifact.sha256 for item in case.report.estimates
    )


def _estimated(case: Case, find: Callable[[LatencyEstimate], tuple[float, float]]) -> Iterable[Finding]:
    """A finding for every estimate of the file, judged as if it were as far off as the worst that was seen; none
    unless the budget lets estimates count."""
    findings = []
    for item in case.report.estimates:
        if item.compressed_sha256 != case.artifact.sha256:
            continue
        subject, places = f"{item.runtime} on {item.target}, estimated", case.served_by(item.runtime, item.target)
        if not case.allow_estimates:
            missing = "estimated, not measured, and allow_estimates is not set"
            findings.append(Finding(subject, missing=missing, places=places))
            continue
        value, bound = find(item)
        basis = f"an estimate, judged {item.largest:.0%} worse: as far as it was off on {item.tested} other networks"
        findings.append(Finding(subject, value, bound, basis=basis, places=places))
    return tuple(findings)


def _faster(item: LatencyEstimate) -> tuple[float, float]:
    """The estimated speed-up, and the least that both errors leave of it."""
    ratio = item.dense_ms / item.compressed_ms
    return ratio, ratio * max(0.0, 1 - item.largest) / (1 + item.largest)


def _timed(
    case: Case, item: LatencyComparison, value: float, interval: Interval, end: Literal["low", "high"]
) -> Finding:
    confidence = (1 + interval.confidence) / 2  # one end of a two-sided interval
    show = times if end == "low" else milliseconds
    bound = interval.low if end == "low" else interval.high
    basis = f"{span(interval, show)} at {100 * interval.confidence:g} %"
    finding = Finding(_place(item), value, bound, confidence, basis=basis)
    if item.verdict == "inconclusive":
        return replace(finding, doubt="; ".join(item.notes) or _noise(item), cause="noise")
    if confidence < case.confidence - 1e-9:
        doubt = f"the interval supports a confidence of {confidence:.3g}, the budget asks for {case.confidence:g}"
        return replace(finding, doubt=doubt, cause="confidence")
    return finding


def _noise(item: LatencyComparison) -> str:
    return (
        f"the machine was too noisy: dense against dense came out at {span(item.control.interval, times)} "
        f"(a width of {item.control_limit:g} is allowed, and 1 must lie inside)"
    )


def _size(case: Case, _limit: float) -> Iterable[Finding]:
    names = " + ".join((case.artifact.path, *(name for name, _, _ in case.artifact.companions)))
    total = float(case.artifact.total_bytes)
    return (Finding(names, total, total, basis=f"{case.artifact.total_bytes:,} bytes"),)


def _size_ratio(case: Case, _limit: float) -> Iterable[Finding]:
    shipped, wanted = case.artifact, ("dense", case.artifact.format)
    dense = next((item for item in case.report.artifacts if (item.side, item.format) == wanted), None)
    if dense is None or dense.total_bytes <= 0:
        return (Finding(shipped.path, missing="the dense network was not exported in this format"),)
    ratio = shipped.total_bytes / dense.total_bytes
    basis = f"{shipped.total_bytes:,} of {dense.total_bytes:,} bytes"
    return (Finding(f"{shipped.path} against {dense.path}", ratio, ratio, basis=basis),)


def _macs_ratio(case: Case, _limit: float) -> Iterable[Finding]:
    plan = case.report.plan
    if plan.dense_macs <= 0:
        return (Finding("the network", missing="the plan counts no MACs"),)
    ratio = plan.macs / plan.dense_macs
    return (Finding("the network", ratio, ratio, basis=f"{plan.macs:,} of {plan.dense_macs:,} MACs"),)


def _place(item: LatencyComparison) -> str:
    batch = f", batch {item.batch_size}" if item.batch_size != 1 else ""
    return f"{item.runtime.name} on {item.target}{batch}"


def _about(case: Case, measured: tuple[_M, ...] | Unmeasured, sha256: Callable[[_M], str]) -> tuple[_M, ...] | Finding:
    """The measurements of the very file that ships, or the finding that there are none."""
    if isinstance(measured, Unmeasured):
        return Finding(case.artifact.path, missing=measured.unmeasured)
    about = tuple(item for item in measured if sha256(item) == case.artifact.sha256)
    if about:
        return about
    paths = {artifact.sha256: artifact.path for artifact in case.report.artifacts}
    others = sorted({paths.get(sha256(item), "another file") for item in measured})
    instead = f": it was measured on {' and '.join(others)}" if others else ""
    return Finding(case.artifact.path, missing=f"not measured on this file{instead}")


def least_bound(total: int, confidence: float) -> float:
    """The upper bound on a drop when not one of `total` images flips: no tolerance below it can be shown.

    The exact binomial bound of zero events in `total` trials (the "rule of three": about 3 / total at 95 %).
    """
    return -math.expm1(math.log1p(-confidence) / total)


def least_samples(limit: float, confidence: float) -> int | None:
    """Images that a tolerance needs if not one flips; None when no number of them is enough (a limit of nothing)."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-limit)) if _NOTHING < limit < 1 else None


_FINDERS: dict[str, Callable[[Case, float], Iterable[Finding]]] = {
    "accuracy": _accuracy_floor,
    "robust_accuracy": _robust_floor,
    "accuracy_drop": _accuracy,
    "robust_accuracy_drop": _robustness,
    "latency_ms": _latency,
    "latency_p90_ms": _p90,
    "speedup": _speedup,
    "size_bytes": _size,
    "size_ratio": _size_ratio,
    "macs_ratio": _macs_ratio,
    "memory_bytes": _memory,
}
