"""What a report knows about one budget of one file: the number, the bound that is judged, or why there is none.

Only measurements of the very file (by sha256) are found. A number that cannot be true is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from edgeprune.records import (
    Artifact,
    Interval,
    LatencyComparison,
    PairedDrop,
    Report,
    RobustnessComparison,
    Unmeasured,
)
from edgeprune.reporting.numbers import milliseconds, points, span, times

AT_LEAST = frozenset({"speedup"})
"""Budgets that are floors; all others are ceilings."""

Cause = Literal["", "attack", "images", "noise", "confidence"]

_M = TypeVar("_M")
_NOTHING = 1e-9
_SLACK = 1e-6  # an interval's end may miss its own point by rounding, not by more


@dataclass(frozen=True, slots=True)
class Finding:
    """What a report knows about one budget of one file.

    `missing` and `doubt` say why there is no number, or why it supports no conclusion (`cause` in a word); `basis`
    what was judged, on how many `images`.
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


@dataclass(frozen=True, slots=True)
class Case:
    """One file of a report, and the one-sided confidence that its bounds must have."""

    report: Report
    artifact: Artifact
    confidence: float


def findings(metric: str, case: Case, limit: float) -> tuple[Finding, ...]:
    """At least one finding; several where several runtimes measured the file."""
    return tuple(_sane(metric, finding) for finding in _FINDERS[metric](case, limit))


def _sane(metric: str, finding: Finding) -> Finding:
    """The finding, or one without numbers when they cannot be true."""
    actual, bound = finding.actual, finding.bound
    if actual is None or bound is None:
        return replace(finding, actual=None, bound=None, missing=finding.missing or "it was not measured")
    numbers = all(math.isfinite(value) for value in (actual, bound))
    if metric.endswith("_drop"):
        possible = numbers and -1 <= actual <= 1 and actual - _SLACK <= bound <= 1 + _SLACK
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
    return tuple(_drop(case, item.drop, item.runtime.name, limit) for item in found)


def _robustness(case: Case, limit: float) -> Iterable[Finding]:
    measured = case.report.robustness
    every = measured if isinstance(measured, Unmeasured) else (measured,)
    found = _about(case, every, lambda item: item.compressed.sha256)
    if isinstance(found, Finding):
        return (found,)
    return tuple(_attacked(case, item, limit) for item in found)


def _attacked(case: Case, item: RobustnessComparison, limit: float) -> Finding:
    threat = item.threat
    subject = f"{item.runtime.name}, {threat.attack} {threat.norm} {threat.epsilon}"
    finding = _drop(case, item.drop, subject, limit)
    if not item.conclusive:
        reasons = "; ".join(item.warnings) or "its own checks did not hold"
        return replace(finding, doubt=f"the attack is not conclusive: {reasons}", cause="attack")
    if item.dense.robust.count == 0 and finding.basis:
        return replace(finding, basis=f"{finding.basis}; the dense file has no robust accuracy to lose")
    return finding


def _drop(case: Case, drop: PairedDrop, subject: str, limit: float) -> Finding:
    """A paired drop and its bound at the budget's confidence."""
    counts = (drop.total, drop.dense_only, drop.compressed_only)
    if drop.total <= 0 or min(counts) < 0 or drop.dense_only + drop.compressed_only > drop.total:
        return Finding(subject, missing=f"the report's counts make no sense: {counts}")
    basis = f"{drop.total:,} paired images: {drop.dense_only:,} lost, {drop.compressed_only:,} won"
    bound = _upper(drop, case.confidence)
    finding = Finding(subject, drop.value, bound, case.confidence, basis=basis, images=drop.total)
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
    found = _timings(case)
    if isinstance(found, Finding):
        return (found,)
    return tuple(
        _timed(case, item, item.compressed.p50_ms, item.compressed.p50_interval, "high")
        for item in found
        if item.compressed is not None
    )


def _speedup(case: Case, _limit: float) -> Iterable[Finding]:
    found = _timings(case)
    if isinstance(found, Finding):
        return (found,)
    return tuple(
        Finding(_place(item), missing="no speed-up was measured")
        if item.speedup is None
        else _timed(case, item, item.speedup.value, item.speedup.interval, "low")
        for item in found
    )


def _timings(case: Case) -> tuple[LatencyComparison, ...] | Finding:
    return _about(case, case.report.latency, lambda item: item.compressed.sha256 if item.compressed else "")


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
    "accuracy_drop": _accuracy,
    "robust_accuracy_drop": _robustness,
    "latency_ms": _latency,
    "speedup": _speedup,
    "size_bytes": _size,
}
