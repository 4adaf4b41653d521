"""The geometry of the report's pictures: where things go, in plain numbers. The templates draw them.

Pure and small, so that a test can say where a point must be. Text from the report reaches a page only through the
templates, which escape it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprune.records import GateRow, Interval, LatencyComparison, LatencyStats, Report, Side, Unmeasured, Verdict


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values in [low, high] to pixels from `start` to `end`; `ticks` are round values on it."""

    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    low: float = 0.0

    def at(self, value: float) -> float:
        """The pixel of `value`, one decimal."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * min(max(share, 0.0), 1.0), 1)


@dataclass(frozen=True, slots=True)
class Point:
    """One file: its latency with an interval, and robust and clean accuracy of the attacked images."""

    side: Side
    latency_ms: float
    latency_interval: Interval
    robust: float
    robust_interval: Interval
    clean: float
    label_right: bool


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Latency against robustness, dense to compressed. Limits are drawn where a budget sets one."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    runtime: str
    latency_limit: float | None
    robust_limit: float | None


@dataclass(frozen=True, slots=True)
class Strip:
    """One file's times as shares of a common axis from zero."""

    side: Side
    runtime: str
    stats: LatencyStats
    low: float
    high: float
    inner_low: float
    inner_high: float
    middle: float


@dataclass(frozen=True, slots=True)
class LayerBar:
    """One layer's MACs before and after, as shares of the largest layer."""

    dense: float
    kept: float


WIDTH, HEIGHT = 520, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 30, 52
_LABEL = 110  # pixels that a label takes beside its mark
_ROOM = 1.3  # the slower mark has its label to the right


def tradeoff(report: Report) -> Tradeoff | Unmeasured:
    """The picture, or why there is none: it needs the attack and the times of the same two files."""
    robustness, latency = report.robustness, report.latency
    if isinstance(robustness, Unmeasured):
        return Unmeasured(unmeasured=f"robustness: {robustness.unmeasured}")
    if isinstance(latency, Unmeasured):
        return Unmeasured(unmeasured=f"latency: {latency.unmeasured}")
    fates = (robustness.dense, robustness.compressed)
    timed = _timed(latency, fates[1].sha256)
    if timed is None or timed.compressed is None:
        return Unmeasured(unmeasured="the attacked file was not timed")
    times = (timed.dense, timed.compressed)
    limits = _limits(report.verdict)
    longest = max(*(item.p50_interval.high for item in times), limits.get("latency_ms", 0.0))
    x = axis(longest * _ROOM, _LEFT, WIDTH - _RIGHT)
    y = Axis(1.0, HEIGHT - _BOTTOM, _TOP, (0, 0.25, 0.5, 0.75, 1))
    sides: tuple[Side, Side] = ("dense", "compressed")
    slower = 0 if times[0].p50_ms >= times[1].p50_ms else 1
    points = tuple(
        Point(
            side=side,
            latency_ms=time.p50_ms,
            latency_interval=time.p50_interval,
            robust=fate.robust.value,
            robust_interval=fate.robust.interval,
            clean=fate.clean.value,
            label_right=index == slower or x.at(time.p50_ms) < _LEFT + _LABEL,
        )
        for index, (side, time, fate) in enumerate(zip(sides, times, fates, strict=True))
    )
    drop = limits.get("robust_accuracy_drop")
    floor = None if drop is None else max(fates[0].robust.value - drop, 0.0)
    return Tradeoff(x, y, points, timed.runtime.name, limits.get("latency_ms"), floor)


def strips(report: Report) -> tuple[Strip, ...]:
    """All timed files on one axis, so that their lengths can be compared by eye."""
    if isinstance(report.latency, Unmeasured):
        return ()
    files: list[tuple[Side, str, LatencyStats]] = []
    for item in report.latency:
        files.append(("dense", _where(item), item.dense))
        if item.compressed is not None:
            files.append(("compressed", _where(item), item.compressed))
    longest = max((_longest(stats) for *_, stats in files), default=1.0)
    return tuple(
        Strip(
            side=side,
            runtime=runtime,
            stats=stats,
            low=_share(stats.min_ms, longest),
            high=_share(_longest(stats), longest),
            inner_low=_share(stats.p50_interval.low, longest),
            inner_high=_share(stats.p50_interval.high, longest),
            middle=_share(stats.p50_ms, longest),
        )
        for side, runtime, stats in files
    )


def layer_bars(report: Report) -> tuple[LayerBar, ...]:
    """A bar for each layer of the report, in its order."""
    largest = max((layer.dense_macs for layer in report.layers), default=1)
    return tuple(LayerBar(_share(layer.dense_macs, largest), _share(layer.macs, largest)) for layer in report.layers)


def time_bars(report: Report) -> tuple[LayerBar, ...]:
    """A bar for each profiled layer, in its order, against the longest."""
    if isinstance(report.layer_times, Unmeasured):
        return ()
    layers = report.layer_times.layers
    longest = max((max(layer.dense_ms or 0.0, layer.compressed_ms or 0.0) for layer in layers), default=1.0)
    return tuple(
        LayerBar(_share(layer.dense_ms or 0.0, longest), _share(layer.compressed_ms or 0.0, longest))
        for layer in layers
    )


def axis(longest: float, start: float, end: float) -> Axis:
    """An axis from zero to a round value at or above `longest`, with four to six ticks."""
    step = 10 ** math.floor(math.log10(longest / 4)) if longest > 0 else 0.25
    step *= next((factor for factor in (1, 2, 2.5, 5, 10) if longest / (step * factor) <= 5.5), 10)
    count = max(math.ceil(longest / step - 1e-9), 1)
    return Axis(step * count, start, end, tuple(step * index for index in range(count + 1)))


def window(low: float, high: float, start: float, end: float) -> Axis:
    """An axis around [low, high] that ends on round values and need not begin at zero."""
    room = high - low if high > low else abs(high) or 1.0
    step = axis(room, 0.0, 1.0).ticks[1]
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step + 1e-9) + 1)
    ticks = tuple(round(step * index, 12) for index in range(first, last + 1))
    return Axis(ticks[-1], start, end, ticks, ticks[0])


def _where(item: LatencyComparison) -> str:
    return f"{item.runtime.name} on {item.target}" if item.kind == "measured-remote" else item.runtime.name


def _timed(latency: tuple[LatencyComparison, ...], sha256: str) -> LatencyComparison | None:
    return next((item for item in latency if item.compressed and item.compressed.sha256 == sha256), None)


def _limits(verdict: Verdict | None) -> dict[str, float]:
    rows: tuple[GateRow, ...] = verdict.rows if verdict else ()
    return {row.metric: row.limit for row in rows}


def _longest(stats: LatencyStats) -> float:
    return max(stats.p50_interval.high, stats.p90_ms or 0.0, stats.p99_ms or 0.0)


def _share(value: float, whole: float) -> float:
    return round(100 * min(max(value / whole, 0.0), 1.0), 2) if whole > 0 else 0.0
