"""What to do about a gate row that does not pass: the command or setting that would help, with a value.

Pure. A remedy is a suggestion made from the numbers of one report; the next run measures whether it was right.
"""

from __future__ import annotations

import math

from edgeprune.config import RecoverConfig, flag_of
from edgeprune.findings import Finding
from edgeprune.records import GateRow, Report, Unmeasured
from edgeprune.reporting.numbers import points, size

_LEAST_ROOM = 0.05  # of the bound's distance: below this, hundreds of times the images would be needed
_MARGIN = 0.03  # aim this much beyond a limit, so that the interval clears it too


def remedy(row: GateRow, finding: Finding, report: Report) -> str:
    """A sentence for a row that fails, is stale, missing or inconclusive; empty for one that passes.

    `finding` is what the row was made of.
    """
    if row.status == "pass":
        return ""
    if row.status == "stale":
        return "run `edgeprune compress` again and judge the file that it writes, or judge with that file's own report"
    if row.status == "missing":
        return _measure_it(row, report)
    if row.metric.endswith("_drop"):
        return _better_drop(row, finding, report)
    if row.status == "inconclusive":
        return _steadier(finding, report)
    return _faster_or_smaller(row, report)


def _measure_it(row: GateRow, report: Report) -> str:
    measured = {
        "accuracy_drop": report.accuracy,
        "robust_accuracy_drop": report.robustness,
        "latency_ms": report.latency,
        "speedup": report.latency,
    }.get(row.metric)
    if row.metric.endswith("_drop") and isinstance(measured, Unmeasured):
        return f"give labelled test images with {_flag('data', 'test')} and run `edgeprune compress` again"
    if row.metric == "robust_accuracy_drop":
        return f"ship the file that was attacked, or attack this one: `edgeprune attack {row.subject}`"
    if row.metric == "size_bytes":
        return "run `edgeprune compress` again"
    return f"add this file's runtime to {_flag('latency', 'runtimes')} and run `edgeprune compress` again"


def _better_drop(row: GateRow, finding: Finding, report: Report) -> str:
    """More images where only the bound is beyond the limit; otherwise a longer recovery or a milder goal."""
    robust = row.metric == "robust_accuracy_drop"
    flag = _flag("attack", "samples") if robust else _flag("data", "samples")
    if row.actual is None or row.bound is None:
        return ""
    if finding.cause == "attack":
        steps = _flag("attack", "steps"), _flag("attack", "restarts")
        return f"make the attack stronger ({steps[0]} 100, {steps[1]} 5) and look at its health in the report"
    better = f"{_recover(report)}, or {_goal(report, harder=False)}"
    if row.actual > row.limit:
        return better
    doubt, room = row.bound - row.actual, row.limit - row.actual
    if room <= _LEAST_ROOM * doubt:
        return f"{better}; more images alone would not help, the measured drop is as good as at the limit"
    needed = math.ceil(finding.images * (doubt / room) ** 2)  # a bound's distance shrinks with the root of the images
    within = f"the measured drop ({points(row.actual)}) is within the limit, its bound is not"
    images = f"judge on about {_rounded_up(needed):,} test images"
    if needed <= max((split.samples for split in report.data if split.role == "test"), default=0):
        return f"{within}: {images} ({flag} {_rounded_up(needed)}), or {better}"
    return f"{within}: {better}, or {images}"


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
    beyond = "" if row.distance is None else f"{size(-row.distance)} must go: "
    return f"{beyond}{_goal(report, harder=True)}"


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
