"""The geometry of the security curve and of the flip rates by decile, in plain numbers. The templates draw them."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import CurveCheck, CurveSide, Decile, Interval, Proportion, Report, Side, Unmeasured
from edgeprune.reporting.figures import Axis, axis
from edgeprune.reporting.ice import in_units

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 34, 52
_BEYOND, _MOST = 1.3, 2.0  # the axis ends between these multiples of the largest check
_SLOT_SHARE = 0.34  # of a decile's width, one bar


@dataclass(frozen=True, slots=True)
class Mark:
    """A check of one file: what stands (with its interval), and what the distances alone left, as shares."""

    side: Side
    epsilon: float
    value: float
    interval: Interval
    alone: float


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """Two step functions as SVG paths, their checks, the run's own epsilon. `unit`: axis values are shown times it."""

    x: Axis
    y: Axis
    unit: int
    norm: str
    paths: tuple[tuple[Side, str], ...]
    marks: tuple[Mark, ...]
    epsilon: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A flip rate: pixels of the bar and of its interval; `kind` is "lost" or "at-epsilon"."""

    kind: str
    left: float
    width: float
    top: float
    low: float
    high: float
    count: int
    total: int


@dataclass(frozen=True, slots=True)
class DecilePlot:
    """Flip rates by decile of distance, nearest first; `centres` are the pixels of the deciles' middles."""

    y: Axis
    start: float
    end: float
    bars: tuple[Bar, ...]
    centres: tuple[float, ...]


def curve_plot(report: Report) -> CurvePlot | Unmeasured:
    """The security curve, or why there is none."""
    curve, robustness = report.curve, report.robustness
    if isinstance(curve, Unmeasured):
        return curve
    if isinstance(robustness, Unmeasured):
        return robustness
    samples = max(curve.search.samples, 1)
    sides: tuple[tuple[Side, CurveSide], ...] = (("dense", curve.dense), ("compressed", curve.compressed))
    largest = max(check.epsilon_value for check in curve.checks)
    farthest = max((side.distances[-1] for _, side in sides if side.distances), default=largest)
    unit = in_units(robustness.threat.epsilon)
    longest = min(max(farthest, _BEYOND * largest), _MOST * largest)
    scaled = axis(longest * unit, _LEFT, WIDTH - _RIGHT)
    x = Axis(scaled.high / unit, scaled.start, scaled.end, tuple(tick / unit for tick in scaled.ticks))
    y = Axis(1.0, HEIGHT - _BOTTOM, _TOP, (0, 0.25, 0.5, 0.75, 1))
    marks = tuple(_mark(check, side) for check in curve.checks for side, _ in sides)
    paths = tuple((side, steps(each, samples, x, y)) for side, each in sides)
    threat = robustness.threat
    return CurvePlot(x, y, unit, curve.search.norm, paths, marks, threat.epsilon_value, threat.epsilon)


def steps(side: CurveSide, samples: int, x: Axis, y: Axis) -> str:
    """The path of a file's curve: from its clean accuracy, a step down at every distance, to the end of the axis."""
    standing = side.right
    path = [f"M{x.at(0)} {y.at(standing / samples)}"]
    for far in side.distances:
        if far > x.high:
            break
        standing -= 1
        path.append(f"H{x.at(far)}V{y.at(standing / samples)}")
    return "".join([*path, f"H{x.end}"])


def decile_plot(report: Report) -> DecilePlot | None:
    """Flip rates by decile; None where there are none."""
    ice = report.thin_ice
    if isinstance(ice, Unmeasured) or not ice.deciles:
        return None
    start, end = _LEFT, WIDTH - _RIGHT
    slot = (end - start) / len(ice.deciles)
    rates = [rate for one in ice.deciles for _, rate in _rates(one) if rate]
    highest = max((rate.interval.high for rate in rates if rate.count), default=0.25)
    scaled = axis(min(highest, 1.0) * 100, HEIGHT - _BOTTOM, _TOP)
    y = Axis(scaled.high / 100, scaled.start, scaled.end, tuple(tick / 100 for tick in scaled.ticks))
    bars = tuple(
        Bar(
            kind=kind,
            left=round(start + slot * (index + 0.5) + (offset - 1) * slot * _SLOT_SHARE, 1),
            width=round(slot * _SLOT_SHARE - 2, 1),
            top=y.at(rate.value),
            low=y.at(rate.interval.low),
            high=y.at(rate.interval.high),
            count=rate.count,
            total=rate.total,
        )
        for index, one in enumerate(ice.deciles)
        for offset, (kind, rate) in enumerate(_rates(one))
        if rate
    )
    return DecilePlot(y, start, end, bars, tuple(round(start + slot * (i + 0.5), 1) for i in range(len(ice.deciles))))


def _mark(check: CurveCheck, side: Side) -> Mark:
    dense = side == "dense"
    value, alone = (check.dense, check.dense_alone) if dense else (check.compressed, check.compressed_alone)
    return Mark(side, check.epsilon_value, value.value, value.interval, alone / value.total)


def _rates(one: Decile) -> tuple[tuple[str, Proportion | None], ...]:
    return ("lost", one.lost), ("at-epsilon", one.lost_at_epsilon)
