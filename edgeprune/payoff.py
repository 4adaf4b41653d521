"""What came of a goal in time, and what removed MACs were worth: the realised fraction, and lazy layers. Pure.

The fraction comes from measured files. What single layers take comes from the runtime's own profile of both files
(`edgeprune.layerwise`): it explains a figure, it is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import Interval, LatencyComparison, LayerChange, LayerProfile, LayerTime, Report, Unmeasured
from edgeprune.types import GOAL_TOLERANCE, Goal

_WORTH = 0.02  # of the network's time: what takes less is not worth a word
_CUT, _PAID = 0.1, 0.5
_MOVED = 0.05  # of a p50: what two short measurements of one state of a machine hardly differ by

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a goal in time, as the shipped file was measured on the first runtime.

    `share`: of the goal, with its interval: 1 is exactly met, above 1 is faster. `least`: the share that meets it: a
    speed-up is a wish, a latency is a limit that nothing may exceed. `changes`: how much longer the dense
    file and the compressed one took than when the plan was made, as shares (None: they were not timed then). Recovery
    changes weights, and those cost nothing: what changes is the machine.
    """

    item: LatencyComparison
    share: float
    interval: Interval
    least: float
    changes: tuple[float, float] | None

    @property
    def met(self) -> bool:
        """Within the tolerance: on either side of a speed-up, below a latency."""
        return self.least - _ROUNDING <= self.share <= 1 + GOAL_TOLERANCE + _ROUNDING

    @property
    def moved(self) -> bool:
        """The machine was in another state when the plan was made: its speed-up was of that state."""
        return self.changes is not None and max(map(abs, self.changes)) > _MOVED


def outcome(report: Report) -> Outcome | None:
    """None where the goal is not in time, where it was not measured whether it is met, and of times that cannot be."""
    plan, latency = report.plan, report.latency
    if isinstance(latency, Unmeasured) or plan.goal_value <= 0:
        return None
    if plan.goal == "speedup":
        goal, least = Goal("speedup", plan.goal_value), 1 - GOAL_TOLERANCE
    elif plan.goal == "latency_ms":
        goal, least = Goal("latency_ms", plan.goal_value), 1.0
    else:
        return None
    then = plan.timing
    name = then.runtime if then else latency[0].runtime.name
    item = next((each for each in latency if each.runtime.name == name), None)
    if item is None or item.speedup is None or item.compressed is None:
        return None
    ratio, ms, p50 = item.speedup.interval, item.compressed.p50_ms, item.compressed.p50_interval
    before = (then.dense_p50_ms, then.compressed_p50_ms) if then else ()
    if min(ratio.low, item.dense.p50_ms, ms, p50.low, *before) <= 0:
        return None
    ends = Interval(low=goal.share(ratio.low, p50.high), high=goal.share(ratio.high, p50.low))
    changes = (item.dense.p50_ms / then.dense_p50_ms - 1, ms / then.compressed_p50_ms - 1) if then else None
    return Outcome(item, goal.share(item.speedup.value, ms), ends, least, changes)


def realised(report: Report, item: LatencyComparison) -> float | None:
    """Latency ratio over MACs ratio: 1 when a network with half the MACs is twice as fast. None: nothing to compare."""
    if item.speedup is None or not 0 < report.plan.macs < report.plan.dense_macs:
        return None
    return item.speedup.value * report.plan.macs / report.plan.dense_macs


def unpaid(layers: tuple[LayerChange, ...], profile: LayerProfile) -> tuple[tuple[LayerChange, LayerTime], ...]:
    """Layers that lost a tenth of their MACs or more and less than half as large a share of their time, largest first.

    Layers that took less than 2 % of the dense network's time, or that the profile does not know, are left out.
    """
    known = {time.name: time for time in profile.layers if time.is_layer}
    whole = sum(time.dense_ms or 0.0 for time in profile.layers)
    found = []
    for layer in layers:
        time = known.get(layer.name)
        if time is None or not layer.dense_macs or not time.dense_ms or time.dense_ms < _WORTH * whole:
            continue
        cut, saved = 1 - layer.macs / layer.dense_macs, 1 - (time.compressed_ms or 0.0) / time.dense_ms
        if cut >= _CUT and saved < _PAID * cut:
            found.append((layer, time))
    return tuple(sorted(found, key=lambda pair: -(pair[1].compressed_ms or 0.0)))
