"""Which points stand at the front, and which one to take: pure, on what was measured.

A point is on the front unless another is at least as good in every objective and better in one (Pareto). Where the one
that is better is so only within both intervals, or doubts its own measurements, nobody can tell the two apart: such a
point is *near*, not behind.
Speed is compared by the speed-up: every run times the dense network interleaved with its own, so what changed on the
machine between two runs is no difference between their points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgeprune.records import Figure, Objective, Placed, SweepPoint, Unmeasured

COMPARED: tuple[Objective, ...] = ("speedup", "accuracy", "robust_accuracy", "size_bytes")
_CLOSE = 0.02  # of a speed-up: half the width at which timing stops by itself
_LESS_IS_MORE = ("size_bytes", "latency_ms")


def objectives_of(points: Sequence[SweepPoint]) -> tuple[Objective, ...]:
    """What the points can be compared by: the objectives that were measured on at least one of them."""
    return tuple(name for name in COMPARED if any(isinstance(getattr(point, name), Figure) for point in points))


def placed(points: Sequence[SweepPoint], objectives: Sequence[Objective]) -> tuple[Placed, ...]:
    """Where each point stands, in their order."""
    machines = Counter(point.machine for point in points if point.status == "done")
    usual = machines.most_common(1)[0][0] if machines else ""
    reasons = {point.name: _incomparable(point, objectives, usual) for point in points}
    compared = [point for point in points if point.status == "done" and not reasons[point.name]]
    return tuple(_place(point, reasons[point.name], compared, objectives) for point in points)


def dominates(one: SweepPoint, other: SweepPoint, objectives: Sequence[Objective]) -> bool:
    """Whether `one` is at least as good in every objective and better in one, by the values."""
    pairs = [(_good(one, name)[1], _good(other, name)[1]) for name in objectives]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def clearly(one: SweepPoint, other: SweepPoint, objectives: Sequence[Objective]) -> bool:
    """Whether `one` is better than `other` beyond both intervals in an objective."""
    return any(_good(one, name)[0] > _good(other, name)[2] for name in objectives)


def recommended(points: Sequence[SweepPoint], *, budgets: bool) -> tuple[str | None, str]:
    """The name of the point to take, and why that one; None, and why none.

    Among those whose budgets hold (the gate judges bounds), the one whose speed-up is largest at the lower end of its
    interval; of those whose intervals meet and end within two per cent of that, the one that keeps the most robust
    (then clean) accuracy. The smallest file where no speed-up was measured.
    """
    done = [point for point in points if point.status == "done"]
    if not done:
        return None, "no point came to an end"
    if not budgets:
        return None, "no budgets are set, so every point of the front is as good as the next: set some in [budget]"
    passed = [point for point in done if point.verdict == "passed"]
    if not passed:
        unclear = [point.name for point in done if point.verdict == "inconclusive"]
        if unclear:
            return None, f"no point holds all budgets for certain; inconclusive: {', '.join(unclear)}"
        return None, "no point holds all budgets"
    best = max(passed, key=lambda point: (_least(point), -_size(point)))
    if len(passed) == 1:
        return best.name, "the one point that holds all budgets"
    held = f"{len(passed)} of {len(done)} points hold all budgets"
    equal = [point for point in passed if _as_fast(point, best)] if _least(best) else [best]
    if len(equal) == 1:
        return best.name, f"{held}, and this one is the fastest of them, by the lower end of its interval"
    best = max(equal, key=lambda point: (_value(point, "robust_accuracy"), _value(point, "accuracy"), _least(point)))
    kept = "the most robust" if isinstance(best.robust_accuracy, Figure) else "the most accurate"
    return best.name, f"{held}; {len(equal)} of them are as fast as can be told, and this one is {kept}"


def _place(point: SweepPoint, missing: str, compared: Sequence[SweepPoint], objectives: Sequence[Objective]) -> Placed:
    if point.status == "failed":
        return Placed(name=point.name, standing="failed", reason=point.reason)
    if missing:
        return Placed(name=point.name, standing="not compared", reason=missing)
    before = [other for other in compared if dominates(other, point, objectives)]
    clear = [other for other in before if clearly(other, point, objectives) and not other.doubts]
    if not before:
        return Placed(name=point.name, standing="front")
    if not clear:
        return Placed(name=point.name, standing="near", behind=tuple(other.name for other in before))
    return Placed(name=point.name, standing="behind", behind=tuple(other.name for other in clear))


def _incomparable(point: SweepPoint, objectives: Sequence[Objective], usual: str) -> str:
    """The first objective that was not measured on the point, with the reason; or that it was timed elsewhere."""
    for name in objectives:
        figure = getattr(point, name)
        if isinstance(figure, Unmeasured):
            return f"{name}: {figure.unmeasured}"
    if "speedup" in objectives and point.machine != usual:
        return f"timed on another processor than most points: {point.machine}, not {usual}"
    return "" if objectives else "nothing was measured"


def _good(point: SweepPoint, name: Objective) -> tuple[float, float, float]:
    """Low, value and high end, turned so that more is better."""
    figure = getattr(point, name)
    low, high = (figure.interval.low, figure.interval.high) if figure.interval else (figure.value, figure.value)
    return (-high, -figure.value, -low) if name in _LESS_IS_MORE else (low, figure.value, high)


def _least(point: SweepPoint) -> float:
    """The speed-up that can be relied on: none where the measurement doubts itself."""
    return _good(point, "speedup")[0] if isinstance(point.speedup, Figure) and not point.doubts else 0.0


def _as_fast(point: SweepPoint, best: SweepPoint) -> bool:
    """Whether `best` may be no faster, and what can be relied on is about the same."""
    return _least(point) >= (1 - _CLOSE) * _least(best) and _good(point, "speedup")[2] >= _least(best)


def _value(point: SweepPoint, name: Objective) -> float:
    return _good(point, name)[1] if isinstance(getattr(point, name), Figure) else 0.0


def _size(point: SweepPoint) -> float:
    return point.size_bytes.value if isinstance(point.size_bytes, Figure) else 0.0
