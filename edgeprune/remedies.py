"""What to do about a gate row that does not pass: the command or setting that would help, with a value.

Pure. A remedy is a suggestion made from the numbers of one report; the next run measures whether it was right. Where
one command helps, it is whole: the run's own, with more flags behind it (of an option that is given twice, the last
counts). Where there is a choice, the flags stand alone, and the verdict has the command that they go behind.
"""

from __future__ import annotations

import math
import shlex
from statistics import NormalDist

from edgeprune.config import flag_of
from edgeprune.findings import ON_DATA, Finding
from edgeprune.records import GateRow, Report, Unmeasured
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.reporting.numbers import percent, points, size
from edgeprune.robustness.suites import SUITES

_LEAST_ROOM = 0.05  # of the bound's distance: below this, hundreds of times the images would be needed
_POWER = 0.8
_HARDER = 1.25  # times as much to remove, where nothing says how much
_MARGIN = 0.03  # aim this much beyond a limit, so that the interval clears it too


def remedy(row: GateRow, finding: Finding, report: Report) -> str:
    """A sentence for a row that fails, is stale, missing or inconclusive; empty for one that passes.

    `finding` is what the row was made of.
    """
    if row.status == "pass":
        return ""
    if row.status == "stale" and finding.subject != "this file":
        return f"run {again(report, _flag('data', 'test'), 'TEST')} with the test data of that digest"
    if row.status == "stale":
        return f"run {again(report)} and judge the file that it writes, or judge with that file's own report"
    if row.status == "missing":
        return _measure_it(row, finding, report)
    if row.metric in ON_DATA:
        return _better_drop(row, finding, report)
    if row.status == "inconclusive":
        return _steadier(finding, report)
    return _faster_or_smaller(row, finding, report)


def again(report: Report, *more: str) -> str:
    """The command that made the report, with more arguments, between backquotes."""
    return f"`{shlex.join([*(shlex.split(report.command) or ['edgeprune', 'compress']), *more])}`"


def _measure_it(row: GateRow, finding: Finding, report: Report) -> str:
    if row.subject == f"[budget.{row.scope}]":
        return "name a runtime, a precision or a target, or remove the table"
    robust = row.metric.startswith("robust_")
    measured = report.robustness if robust else report.accuracy
    if row.metric in ON_DATA and isinstance(measured, Unmeasured):
        return f"give labelled test images: {again(report, _flag('data', 'test'), 'TEST')}"
    if robust:
        attack = again(report, *_first(finding, report, always=True))
        return f"ship the file that was attacked, or have this one attacked, in the runtime that comes first: {attack}"
    if row.metric in ("size_bytes", "size_ratio", "macs_ratio"):
        return f"run {again(report)}"
    if "allow_estimates" in row.reason:
        return "measure on the device, or set allow_estimates = true in [budget]"
    if isinstance(report.latency, Unmeasured):
        return f"measure on the device: {again(report, _flag('remote', 'host'), 'USER@DEVICE')}"
    if row.metric == "latency_p90_ms" and "no p90" in row.reason:
        flags = _flag("latency", "processes"), _flag("latency", "blocks")
        return f"measure longer: {again(report, flags[0], '5', flags[1], '24')}"
    return f"time this file's runtime, too: {again(report, *_first(finding, report, always=True))}"


def _better_drop(row: GateRow, finding: Finding, report: Report) -> str:
    """More images where only the bound is beyond the limit; otherwise a longer recovery or a milder goal."""
    robust = row.metric.startswith("robust_")
    flag = _flag("attack", "samples") if robust else _flag("data", "samples")
    if row.actual is None or row.bound is None:
        return ""
    if finding.cause == "attack":
        return _stronger(report)
    dense = _dense_share(finding, report, robust=robust)
    if row.metric in ("accuracy", "robust_accuracy") and dense is not None and row.limit > dense:
        has = f"the dense file itself has {100 * dense:.2f} %"
        return f"{has}: start from a better network, or set a floor that it holds (a largest drop is judged against it)"
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


def _stronger(report: Report) -> str:
    """How the attack could become conclusive: more time where that was up, more effort otherwise."""
    found = report.robustness
    health = "look at its health in the report"
    if isinstance(found, Unmeasured):
        return health
    if found.dense.unfinished or found.compressed.unfinished:
        return f"give the attack more time: {again(report, _flag('attack', 'minutes'), '60m')}"
    if "black box" in (found.dense.grade, found.compressed.grade):
        return f"{health}: no gradients could be followed, so standing images prove little"
    name = found.threat.attack
    if name == "standard":
        return health
    if name in (*SUITES, "wide"):
        return f"make the attack stronger ({_flag('attack', 'attack')} standard) and {health}"
    steps = _flag("attack", "steps"), _flag("attack", "restarts")
    return f"make the attack stronger ({steps[0]} 100, {steps[1]} 5) and {health}"


def _dense_share(finding: Finding, report: Report, *, robust: bool) -> float | None:
    """What the dense file itself reaches on the same images."""
    if robust:
        return None if isinstance(report.robustness, Unmeasured) else report.robustness.dense.robust.value
    measured = () if isinstance(report.accuracy, Unmeasured) else report.accuracy
    return next((item.dense.value for item in measured if item.runtime.name in finding.places), None)


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


def _faster_or_smaller(row: GateRow, finding: Finding, report: Report) -> str:
    if row.metric == "speedup":
        return f"aim higher: {_aim('speedup', row.limit * (1 + _MARGIN), finding, report)}"
    if row.metric == "latency_ms":
        return f"aim lower: {_aim('latency_ms', row.limit * (1 - _MARGIN), finding, report)}"
    if row.metric == "latency_p90_ms":
        share = (row.limit / row.bound if row.bound else 1.0) * (1 - _MARGIN)
        aim = _aim("latency_ms", share * _p50(finding, report), finding, report)
        return f"aim lower, at a p50 {share:.2g} times today's: {aim}"
    if row.metric == "macs_ratio":
        return f"aim lower: {_aim('macs_ratio', row.limit * (1 - _MARGIN), None, report)}"
    if row.metric == "memory_bytes":
        return _leaner(row, report)
    more = _goal(report, harder=True, times=_times_more(row, report))
    beyond = "" if row.metric == "size_ratio" or row.distance is None else f"{size(-row.distance)} must go: "
    return f"{beyond}{more}"


def _aim(kind: str, value: float, finding: Finding | None, report: Report) -> str:
    """The flags of a goal; with `finding`, its runtime comes first, since a goal in time is the first runtime's."""
    first = _first(finding, report) if finding else ()
    return " ".join((*first, _flag("prune", kind), f"{value:.3g}")) + _instead(kind, report)


def _instead(kind: str, report: Report) -> str:
    """Which goal of the run's command the goal `kind` takes the place of: there is one at a time."""
    given = shlex.split(report.command)
    others = (_flag("prune", other) for other in ("ratio", "macs_ratio", "speedup", "latency_ms") if other != kind)
    return "".join(f" in place of {flag}" for flag in others if any(p.split("=")[0] == flag for p in given))


def _leaner(row: GateRow, report: Report) -> str:
    """Fewer channels where the file is what is too large; the runtime's own memory does not shrink with it."""
    beyond = -(row.distance or 0.0)
    largest = max(item.total_bytes for item in report.artifacts if item.side == "compressed")
    if beyond <= largest:
        return f"{size(beyond)} must go: {_goal(report, harder=True)}"
    return (
        f"{size(beyond)} must go, and the file itself has {size(largest)}: the rest is the runtime's and the dense "
        "file's, so no pruning saves it; set a higher limit"
    )


def _times_more(row: GateRow, report: Report) -> float:
    """How many times as much must be removed for a file's size to hold, going by what was removed so far."""
    after = next((item for item in report.artifacts if row.subject.startswith(item.path)), None)
    before = next((a for a in report.artifacts if after and (a.side, a.format) == ("dense", after.format)), None)
    if after is None or before is None or row.actual is None or after.total_bytes >= before.total_bytes:
        return _HARDER
    limit = row.limit if row.metric == "size_ratio" else row.limit / before.total_bytes
    return max((1 - limit) / (1 - after.total_bytes / before.total_bytes) * (1 + _MARGIN), 1 + _MARGIN)


def _p50(finding: Finding, report: Report) -> float:
    timed = () if isinstance(report.latency, Unmeasured) else report.latency
    return next((i.compressed.p50_ms for i in timed if i.compressed and i.runtime.name in finding.places), 0.0)


def _first(finding: Finding, report: Report, *, always: bool = False) -> tuple[str, ...]:
    """The flag that lets the runtime of a finding come first, since goals and attacks are the first runtime's.

    Empty where it does already, unless `always`.
    """
    used = list(dict.fromkeys(item.runtime.name for item in report.parity))
    mine = next((name for name in used if name in finding.places), None)
    if mine is None or (mine == used[0] and not always):
        return ()
    return _flag("latency", "runtimes"), ",".join(dict.fromkeys([mine, *used]))


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


def _goal(report: Report, *, harder: bool, times: float = _HARDER) -> str:
    """A milder goal of the same kind as the plan's, or a harder one that removes `times` as much."""
    kind, value = report.plan.goal, report.plan.goal_value
    if kind == "ratio":
        value = min(value * times, (1 + value) / 2) if harder else value * 0.75
    elif kind == "macs_ratio":
        value = max(1 - (1 - value) * times, value / 2) if harder else (value + min(value * 1.5, 1)) / 2
    elif kind == "speedup":
        value = 1 + (value - 1) * (times if harder else 0.75)
    elif kind == "latency_ms":
        value = value / (1 + 0.2 * times) if harder else value * 1.15
    else:
        return "choose a harder goal" if harder else "choose a milder goal"
    return f"{'prune more' if harder else 'prune less'}: {_flag('prune', kind)} {value:.2g}"


def _rounded_up(count: int) -> int:
    """Two significant digits, upwards: a suggestion should not look exact."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // unit) * unit


def _flag(section: str, name: str) -> str:
    return f"--{flag_of(section, name)}"
