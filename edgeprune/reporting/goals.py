"""What pruning aimed at, what came of it, and what removed MACs were worth: one wording for every rendering."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.payoff import Outcome, outcome, realised, unpaid
from edgeprune.records import LatencyComparison, PrunePlan, Report, Unmeasured
from edgeprune.reporting import numbers as n
from edgeprune.types import GOAL_TOLERANCE

_LAZY = 6
_SHARED = {
    "channels": "every group's channels",
    "blocks": "the blocks",
    "both": "the blocks and of every remaining group's channels",
}


def goal(plan: PrunePlan) -> str:
    """What pruning aimed at, in words."""
    value = plan.goal_value
    words = {
        "ratio": f"{n.percent(value)} of {_SHARED[plan.scope]} removed",
        "macs_ratio": f"{n.percent(value)} of the MACs kept",
        "speedup": f"{value:g} times as fast, measured",
        "latency_ms": f"a p50 of {value:g} ms, measured",
    }
    return words.get(plan.goal, f"{plan.goal} {value:g}")


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence about the goal; `warns` where it needs a reader's eye."""

    text: str
    warns: bool


def goal_remark(report: Report) -> Remark | None:
    """Whether the file as it ships meets the goal in time, and in what state the machine was; None: no such goal."""
    found = outcome(report)
    if found is None:
        return None
    asked, unclear = goal(report.plan).removesuffix(", measured"), found.item.verdict == "inconclusive"
    text = f"asked for {asked}, {_said(found)}: {_figures(found.item)}{_planned(report, found)}"
    return Remark(text, found.moved or unclear or not found.met)


def _said(found: Outcome) -> str:
    """The answer in a word, with how far off it is and how sure that is."""
    off = n.percent(abs(found.share - 1))
    if found.item.verdict == "inconclusive":
        return "not decided, since the measurement is inconclusive"
    if found.met:
        short = f", {off} short, within the {n.percent(GOAL_TOLERANCE)} that it is met by" if found.share < 1 else ""
        return f"met{short}"
    unsure = ", which the interval does not exclude" if found.interval.low <= 1 <= found.interval.high else ""
    return f"{'exceeded' if found.share > 1 else 'missed'} by {off}{unsure}"


def _figures(item: LatencyComparison) -> str:
    """What was measured, with intervals."""
    assert item.speedup
    assert item.compressed
    times, p50 = item.speedup, item.compressed
    ratio = f"{n.times(times.value)} ({n.span(times.interval, n.times, unit=False)})"
    took = f"{n.milliseconds(p50.p50_ms)} ({n.span(p50.p50_interval, n.milliseconds, unit=False)})"
    return f"{ratio}, p50 {took} in {item.runtime.name}"


def _planned(report: Report, found: Outcome) -> str:
    """What the plan was timed at, and whether the machine has changed since then."""
    before = report.plan.timing
    if before is None or found.changes is None:
        return ""
    ends = n.milliseconds(before.dense_p50_ms), n.milliseconds(before.compressed_p50_ms)
    told = f"; planned at {n.times(before.speedup)} ({' to '.join(ends)})"
    if not found.moved:
        return told
    dense, compressed = (n.signed(n.percent(change)) for change in found.changes)
    return (
        f"{told}, and since then the dense file's time has changed by {dense}, the compressed one's by {compressed}: "
        "the machine is in another state (its clock, or what its caches and memory are shared with), and a speed-up is "
        "of a state"
    )


def payoff(report: Report) -> tuple[str, ...]:
    """What the removed MACs were worth in each runtime, and the layers that did not pay, in sentences."""
    if isinstance(report.latency, Unmeasured):
        return ()
    plan, found = report.plan, []
    for item in report.latency:
        share = realised(report, item)
        if share is not None and item.speedup:
            fewer = n.times(plan.dense_macs / plan.macs)
            slower = "pruned, but slower: " if item.verdict == "slower" else ""
            speed = f"{n.times(item.speedup.value)} as fast in {item.runtime.name}"
            worth = f"{n.percent(share)} of what MACs promise was realised"
            found.append(f"{slower}{fewer} fewer MACs made the file {speed}: {worth}")
    if not isinstance(report.layer_times, Unmeasured) and found:
        lazy = [
            f"{layer.name} ({n.change(layer.dense_macs, layer.macs)} MACs, "
            f"{n.change(time.dense_ms or 0.0, time.compressed_ms or 0.0)} time)"
            for layer, time in unpaid(report.layers, report.layer_times)
        ]
        if lazy:
            more = f" and {len(lazy) - _LAZY} more" if len(lazy) > _LAZY else ""
            runtime = report.layer_times.runtime
            found.append(f"by the profile of {runtime} these did not pay: {', '.join(lazy[:_LAZY])}{more}")
    return tuple(found)
