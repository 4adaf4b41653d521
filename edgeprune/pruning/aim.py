"""Aims at milliseconds: MACs are moved until the measured figure meets the goal.

Pure but for the `measure` that it is given: propose widths, have them measured, correct the MACs budget by what was
seen (a secant in logarithms, kept inside what is already bracketed), stop within 3 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import Widths, by_macs, macs_of
from edgeprune.types import ChannelGraph, Goal, Progress, Scores

TOLERANCE = 0.03
_TRIES = 7


@dataclass(frozen=True, slots=True)
class Timing:
    """What a candidate reached: speed-up over the dense file, and its own p50."""

    speedup: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Aimed:
    """The widths that were chosen, what they measured, and notes for the plan."""

    widths: Widths
    timing: Timing
    notes: tuple[str, ...]


def aim(
    graph: ChannelGraph,
    scores: Scores,
    goal: Goal,
    multiple: int,
    measure: Callable[[Widths], Timing],
    *,
    progress: Progress | None = None,
) -> Aimed:
    """Widths with the most MACs left that meet a `speedup` or `latency_ms` goal as measured.

    Where no widths meet it, the fastest ones seen, with a note that says so. PruningError when nothing can go.
    """
    tried: dict[tuple[tuple[str, int], ...], tuple[float, float, Widths, Timing]] = {}
    low, high = 0.01, 0.999  # MACs ratios: too fast below, too slow above
    ratio = 1 / goal.value if goal.kind == "speedup" else 0.5
    for attempt in range(_TRIES):
        try:
            widths = by_macs(graph, scores, ratio, multiple)
        except PruningError:
            if tried or ratio < 0.5:
                break
            ratio = 0.5
            continue
        key = tuple(sorted(widths.items()))
        if key in tried:
            break
        if progress:
            progress(f"measuring candidate {attempt + 1}: {ratio:.0%} of the MACs", attempt / _TRIES)
        timing = measure(widths)
        met, share = reached(goal, timing), macs_of(graph, widths) / graph.macs
        tried[key] = (met, share, widths, timing)
        if 1 <= met <= 1 + TOLERANCE:
            break
        low, high = (max(low, share), high) if met > 1 else (low, min(high, share))
        if low >= high:
            break
        guess = share * met ** (1 / max(0.3, _slope(tried.values())))
        ratio = guess if low < guess < high else math.sqrt(low * high)
    if not tried:
        raise PruningError("the plan removes nothing", hint="allow finer widths with --channel-multiple")
    return _choose(goal, list(tried.values()))


def reached(goal: Goal, timing: Timing) -> float:
    """Share of the goal that a timing reaches: 1 is exactly met, above 1 is faster."""
    return timing.speedup / goal.value if goal.kind == "speedup" else goal.value / timing.latency_ms


def _slope(tried: object) -> float:
    """How fast the figure rises as MACs fall, in logarithms: from the two last tries, else 1 (time ~ MACs)."""
    points = list(tried)[-2:]  # type: ignore[call-overload]
    if len(points) < 2 or points[0][1] == points[1][1]:
        return 1.0
    (met_a, share_a, *_), (met_b, share_b, *_) = points
    slope = math.log(met_a / met_b) / math.log(share_b / share_a)
    return min(max(slope, 0.3), 2.0)


def _choose(goal: Goal, tried: list[tuple[float, float, Widths, Timing]]) -> Aimed:
    name = "speed-up" if goal.kind == "speedup" else "latency"
    good = [entry for entry in tried if entry[0] >= 1]
    if good:
        met, _, widths, timing = max(good, key=lambda entry: entry[1])
        notes = () if met <= 1 + TOLERANCE else (f"the {name} goal is exceeded: the next wider plan misses it",)
    else:
        met, _, widths, timing = max(tried, key=lambda entry: entry[0])
        notes = () if met >= 1 - TOLERANCE else (f"the {name} goal was not reached: this is the fastest plan seen",)
    seen = f"aimed on candidates before recovery: {timing.speedup:.2f}x, p50 {timing.latency_ms:.3g} ms"
    return Aimed(widths, timing, (*notes, seen))
