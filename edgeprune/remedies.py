"""What to do about a gate row that does not pass: the command or setting that would help, with a value.

Pure. A remedy is a suggestion made from the numbers of one report; the next run measures whether it was right.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from edgeprune.config import flag_of
from edgeprune.findings import ON_DATA, Finding
from edgeprune.records import GateRow, Report, Unmeasured
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.reporting.numbers import percent, points, size

_LEAST_ROOM = 0.05  # of the bound's distance: below this, hundreds of times the images would be needed
_POWER = 0.8
_MARGIN = 0.03  # aim this much beyond a limit, so that the interval clears it too


def remedy(row: GateRow, finding: Finding, report: Report) -> str:
    """A sentence for a row that fails, is stale, missing or inconclusive; empty for one that passes.

    `finding` is what the row was made of.
    """
    if row.status == "pass":
        return ""
    if row.status == "stale" and finding.subject != "this file":
        return f"run `edgeprune compress` again with the test data of that digest ({_flag('data', 'test')})"
    if row.status == "stale":
        return "run `edgeprune compress` again and judge the file that it writes, or judge with that file's own report"
    if row.status == "missing":
        return _measure_it(row, report)
    if row.metric in ON_DATA:
        return _better_drop(row, finding, report)
    if row.status == "inconclusive":
        return _steadier(finding, report)
    return _faster_or_smaller(row, report)


def _measure_it(row: GateRow, report: Report) -> str:
    if row.subject == f"[budget.{row.scope}]":
        return "name a runtime, a precision or a target, or remove the table"
    robust = row.metric.startswith("robust_")
    measured = report.robustness if robust else report.accuracy
    if row.metric in ON_DATA and isinstance(measured, Unmeasured):
        return f"give labelled test images with {_flag('data', 'test')} and run `edgeprune compress` again"
    if robust:
        return f"ship the file that was attacked, or attack this one: `edgeprune attack {row.subject}`"
    if row.metric in ("size_bytes", "size_ratio", "macs_ratio"):
        return "run `edgeprune compress` again"
    if "allow_estimates" in row.reason:
        return "measure on the device, or set allow_estimates = true in [budget]"
    if row.metric == "latency_p90_ms" and "no p90" in row.reason:
        flags = _flag("latency", "processes"), _flag("latency", "blocks")
        return f"measure longer: {flags[0]} 5 {flags[1]} 24"
    return f"add this file's runtime to {_flag('latency', 'runtimes')} and run `edgeprune compress` again"


def _better_drop(row: GateRow, finding: Finding, report: Report) -> str:
    """More images where only the bound is beyond the limit; otherwise a longer recovery or a milder goal."""
    robust = row.metric.startswith("robust_")
    flag = _flag("attack", "samples") if robust else _flag("data", "samples")
    if row.actual is None or row.bound is None:
        return ""
    if finding.cause == "attack":
        steps = _flag("attack", "steps"), _flag("attack", "restarts")
        return f"make the attack stronger ({steps[0]} 100, {steps[1]} 5) and look at its health in the report"
    better = f"{_recover(report)}, or {_goal(report, harder=False)}"
    if row.actual < row.limit if row.operator == ">=" else row.actual > row.limit:
        return better
    doubt, room = abs(row.bound - row.actual), abs(row.limit - row.actual)
    if room <= _LEAST_ROOM * doubt:
        return f"{better}; more images alone would not help, what was measured is as good as at the limit"
    # A bound's distance shrinks with the root of the images; at just so many it would hold in one run of two.
    needed = math.ceil(finding.images * (doubt / room) ** 2 * _for_power(finding.confidence or 0.95))
    within = f"the measured {_word(row)} is within the limit, its bound is not"
    images = f"judge on about {_rounded_up(needed):,} test images, for a power of {_POWER:.0%}"
    if needed <= max((split.samples for split in report.data if split.role == "test"), default=0):
        return f"{within}: {images} ({flag} {_rounded_up(needed)}), or {better}"
    return f"{within}: {better}, or {images}"


def _for_power(confidence: float) -> float:
    """How many times the images that would bring the bound to the limit bring it there with the wanted power."""
    quantiles = [NormalDist().inv_cdf(share) for share in (confidence, _POWER)]
    return (sum(quantiles) / quantiles[0]) ** 2


def _steadier(finding: Finding, report: Report) -> str:
    if finding.cause == "confidence":
        return "lower budget.confidence to what the interval supports"
    processes = 5 if isinstance(report.latency, Unmeasured) else max(item.processes for item in report.latency)
    return (
        f"close other programs and measure longer: {_flag('latency', 'processes')} {2 * processes}; "
        "or measure on the device itself"
    )


def _faster_or_smaller(row: GateRow, report: Report) -> str:
    if row.metric == "speedup":
        return f"aim higher: {_flag('prune', 'speedup')} {row.limit * (1 + _MARGIN):.3g}"
    if row.metric == "latency_ms":
        return f"aim lower: {_flag('prune', 'latency_ms')} {row.limit * (1 - _MARGIN):.3g}"
    if row.metric == "latency_p90_ms":
        ratio = row.limit / row.bound if row.bound else 1.0
        return f"aim lower, at a p50 {ratio * (1 - _MARGIN):.2g} times today's ({_flag('prune', 'latency_ms')})"
    if row.metric == "macs_ratio":
        return f"aim lower: {_flag('prune', 'macs_ratio')} {row.limit * (1 - _MARGIN):.2g}"
    if row.metric == "size_ratio":
        return _goal(report, harder=True)
    beyond = "" if row.distance is None else f"{size(-row.distance)} must go: "
    return f"{beyond}{_goal(report, harder=True)}"


def _word(row: GateRow) -> str:
    """ "drop (0.8 pt)", "accuracy (91.2 %)"."""
    value = 0.0 if row.actual is None else row.actual
    return f"drop ({points(value)})" if row.metric.endswith("_drop") else f"accuracy ({percent(value)})"


def _recover(report: Report) -> str:
    """The next stronger recovery than the one that the report describes."""
    recovery = report.recovery
    if isinstance(recovery, Unmeasured) or recovery.recipe in ("none", "calibrate"):
        epochs = RecoverConfig().epochs
        return f"recover the accuracy: {_flag('recover', 'recipe')} distill {_flag('recover', 'epochs')} {epochs}"
    return f"recover longer: {_flag('recover', 'epochs')} {2 * max(recovery.epochs, 1)}"


def _goal(report: Report, *, harder: bool) -> str:
    """A milder or harder goal of the same kind as the plan's."""
    kind, value = report.plan.goal, report.plan.goal_value
    if kind == "ratio":
        value = min(value * 1.25, (1 + value) / 2) if harder else value * 0.75
    elif kind == "macs_ratio":
        value = value * 0.75 if harder else (value + min(value * 1.5, 1)) / 2
    elif kind == "speedup":
        value = 1 + (value - 1) * (1.25 if harder else 0.75)
    elif kind == "latency_ms":
        value = value * (0.85 if harder else 1.15)
    else:
        return "choose a harder goal" if harder else "choose a milder goal"
    return f"{'prune more' if harder else 'prune less'}: {_flag('prune', kind)} {value:.2g}"


def _rounded_up(count: int) -> int:
    """Two significant digits, upwards: a suggestion should not look exact."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // unit) * unit


def _flag(section: str, name: str) -> str:
    return f"--{flag_of(section, name)}"
