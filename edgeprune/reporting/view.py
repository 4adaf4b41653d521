"""What every rendering of a report says, in words and formatted numbers: one wording, one rounding, four formats.

A number that was not measured is here as the reason why, never as a blank or a zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeprune.records import (
    AccuracyComparison,
    Artifact,
    GateRow,
    Interval,
    LatencyComparison,
    LatencyEstimate,
    ModelInfo,
    PairedDrop,
    Proportion,
    PrunePlan,
    RecoveryInfo,
    Report,
    RobustnessComparison,
    ThreatModel,
    Unmeasured,
    Verdict,
)
from edgeprune.reporting import numbers as n
from edgeprune.robustness.suites import effort

METRICS = {
    "accuracy": "Accuracy",
    "robust_accuracy": "Robust accuracy",
    "accuracy_drop": "Accuracy drop",
    "robust_accuracy_drop": "Robust accuracy drop",
    "latency_ms": "Latency, p50",
    "latency_p90_ms": "Latency, p90",
    "speedup": "Speed-up",
    "size_bytes": "File size",
    "size_ratio": "File size, share of the dense",
    "macs_ratio": "MACs, share of the dense",
    "memory_bytes": "Peak memory",
}
WORDS = {"pass": "PASS", "fail": "FAIL", "stale": "STALE", "missing": "MISSING", "inconclusive": "UNCLEAR"}
TITLES = {
    "passed": "May ship",
    "failed": "Must not ship",
    "inconclusive": "Not decided",
    "no budgets": "Not judged",
}
_NAMES = 6
NOT_JUDGED = "No budgets were set, so nothing was judged. Write them under [budget] in edgeprune.toml."


@dataclass(frozen=True, slots=True)
class Figure:
    """A number as text, and its interval or a remark as text."""

    text: str
    spread: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of "what changed". `missing` says why there are no numbers."""

    label: str
    detail: str
    dense: Figure | None = None
    compressed: Figure | None = None
    change: Figure | None = None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A gate row as text. `gauge` places the judged bound and the limit on one axis, as shares of its length."""

    metric: str
    subject: str
    status: str
    word: str
    limit: str
    actual: str
    bound: str
    distance: str
    reason: str
    remedy: str
    gauge: tuple[float, float] | None
    only_warns: bool = False


@dataclass(frozen=True, slots=True)
class Flips:
    """Where two files differ on the same images."""

    label: str
    detail: str
    total: int
    both_right: int
    lost: int
    won: int
    both_wrong: int
    test: str


@dataclass(frozen=True, slots=True)
class Headline:
    """May it ship: the status of the verdict, in two words and in one sentence."""

    status: str
    title: str
    sentence: str


def headline(verdict: Verdict | None) -> Headline:
    """What stands at the top of every rendering; None: no gate was asked for."""
    if verdict is None or verdict.status == "no budgets":
        return Headline("no budgets", TITLES["no budgets"], NOT_JUDGED)
    sentence = verdict.reason[:1].upper() + verdict.reason[1:]
    return Headline(verdict.status, TITLES[verdict.status], sentence.rstrip(".") + ".")


def judged(verdict: Verdict | None) -> tuple[Judged, ...]:
    """The rows of a verdict, in its order."""
    return tuple(_judged(row) for row in verdict.rows) if verdict else ()


def remedies(rows: tuple[Judged, ...]) -> tuple[tuple[str, str], ...]:
    """(budgets, remedy) for each different remedy, in the order of the rows."""
    named: dict[str, list[str]] = {}
    for row in rows:
        if row.remedy and row.metric not in named.setdefault(row.remedy, []):
            named[row.remedy].append(row.metric)
    everything = len({row.metric for row in rows})
    return tuple(
        ("All" if len(names) == everything > 1 else ", ".join(names), remedy) for remedy, names in named.items()
    )


def pieces(remedy: str) -> tuple[tuple[str, bool], ...]:
    """A remedy in its parts: (text, whether it is a command)."""
    parts = remedy.split("`")
    return tuple((part, place % 2 == 1) for place, part in enumerate(parts) if part.strip())


def loose_flags(rows: tuple[Judged, ...]) -> bool:
    """Whether a remedy names flags without the command that they go behind."""
    return any(not whole and "--" in part for row in rows for part, whole in pieces(row.remedy))


def changes(report: Report) -> tuple[Change, ...]:
    """Dense against compressed: latency, accuracy, robust accuracy, size, MACs, parameters, channels."""
    plan = report.plan
    width, kept = sum(group.width for group in plan.groups), sum(len(group.kept) for group in plan.groups)
    return (
        *_latency(report.latency),
        *(_estimate(item) for item in report.estimates),
        *_accuracy(report.accuracy),
        _robust(report.robustness),
        *_sizes(report),
        *_memory(report.latency),
        _counted("MACs", "", plan.dense_macs, plan.macs),
        _counted("Parameters", "", plan.dense_parameters, plan.parameters),
        _counted("Channels", "of the prunable groups", width, kept),
        *_blocks(plan),
    )


def flips(report: Report) -> tuple[Flips, ...]:
    """Images that one file gets right and the other wrong: clean a runtime, then under attack."""
    rows: list[Flips] = []
    if not isinstance(report.accuracy, Unmeasured):
        rows.extend(_flips("Clean", _where(item), item.dense, item.drop) for item in report.accuracy)
    if not isinstance(report.robustness, Unmeasured):
        item = report.robustness
        rows.append(_flips("Under attack", threat(item.threat), item.dense.robust, item.drop))
    return tuple(rows)


def threat(model: ThreatModel) -> str:
    """The threat model in a phrase: "pgd, linf 8/255, 40 steps, 2 restarts"."""
    return f"{model.attack}, {model.norm} {model.epsilon}, {effort(model)}"


def fitting(model: ModelInfo) -> str:
    """How image files became the input, and what was held beside them; empty where there was nothing to do."""
    resized = f"resized to {model.resize} ({model.interpolation}), " if model.resize else ""
    ways = {
        "exact": "",
        "crop": f"image files {resized}cropped at the centre",
        "squash": f"image files squashed ({model.interpolation})",
    }
    held = f"held at one value: {', '.join(model.held)}" if model.held else ""
    return "; ".join(part for part in (ways[model.fit], held) if part)


def step_recovery(info: RecoveryInfo | Unmeasured) -> str:
    """What recovery made of one of several steps, in a phrase."""
    if isinstance(info, Unmeasured):
        return info.unmeasured
    before, after = (
        "unmeasured" if value is None else n.percent(value) for value in (info.accuracy_before, info.accuracy_after)
    )
    epochs = f"{info.epochs} epoch{'s' if info.epochs != 1 else ''}"
    return f"{info.recipe}, {epochs}: {before} to {after} on held-out training images, in torch"


def proportion(value: Proportion) -> Figure:
    """A share with its interval."""
    return Figure(n.percent(value.value), n.span(value.interval, n.percent, unit=False))


def place(item: LatencyComparison) -> str:
    """Where a latency was measured: runtime, a device that is not this machine, threads, a batch of more than one."""
    threads = item.runtime.threads
    batch = f", batch {item.batch_size}" if item.batch_size != 1 else ""
    device = f" on {item.target}" if item.kind == "measured-remote" else ""
    return f"{item.runtime.name}{device}, {threads} thread{'s' if threads != 1 else ''}{batch}"


def _where(item: AccuracyComparison) -> str:
    return f"{item.runtime.name} on {item.target}" if item.target else item.runtime.name


# ------------------------------------------------------------------------------------------------- gate rows


def _judged(row: GateRow) -> Judged:
    def show(value: float | None) -> str:
        return "" if value is None else n.quantity(value, row.unit)

    sign, warns = "≥" if row.operator == ">=" else "≤", row.level == "warn" and row.status != "pass"
    bound = ""
    if row.bound is not None:
        side = "at least" if row.operator == ">=" else "at most"
        bound = f"{side} {show(row.bound)} ({100 * row.confidence:.3g} %)" if row.confidence else show(row.bound)
    distance = ""
    if row.distance is not None:
        left = n.quantity(abs(row.distance), "fraction" if row.unit == "share" else row.unit, digits=2)
        distance = f"{left} {'to spare' if row.distance >= 0 else 'beyond the limit'}"
    return Judged(
        metric=METRICS.get(row.metric, row.metric),
        subject=row.subject,
        status=row.status,
        word="WARN" if warns else WORDS[row.status],
        limit=f"{sign} {show(row.limit)}",
        actual=show(row.actual) or "unmeasured",
        bound=bound,
        distance=distance,
        reason=row.reason,
        remedy=row.remedy,
        gauge=_gauge(row),
        only_warns=warns,
    )


def _gauge(row: GateRow) -> tuple[float, float] | None:
    """Judged bound and limit on an axis from zero that holds both with some room; a gain stands at zero."""
    if row.bound is None:
        return None
    longest = max(row.bound, row.limit, 0.0) * 1.25
    return (max(row.bound, 0.0) / longest, row.limit / longest) if longest > 0 else (0.0, 0.0)


# ---------------------------------------------------------------------------------------------- what changed


def _latency(measured: tuple[LatencyComparison, ...] | Unmeasured) -> tuple[Change, ...]:
    if isinstance(measured, Unmeasured):
        return (Change("Latency, p50", "", missing=measured.unmeasured),)
    rows = []
    for item in measured:
        dense = _interval(item.dense.p50_ms, item.dense.p50_interval, n.milliseconds)
        if item.compressed is None:
            rows.append(Change("Latency, p50", place(item), missing="one file alone was timed"))
            continue
        compressed = _interval(item.compressed.p50_ms, item.compressed.p50_interval, n.milliseconds)
        rows.append(Change("Latency, p50", place(item), dense, compressed, speedup(item)))
    return tuple(rows)


def _estimate(item: LatencyEstimate) -> Change:
    """An estimate, called one, with its error."""
    unseen = f"off by {n.percent(item.error)} (median), {n.percent(item.largest)} (largest) on {item.tested} others"
    ratio = n.times(item.dense_ms / item.compressed_ms)
    return Change(
        "Latency, estimated",
        f"{item.runtime} on {item.target}, not measured: {item.method}",
        Figure(n.milliseconds(item.dense_ms), "estimated"),
        Figure(n.milliseconds(item.compressed_ms), "estimated"),
        Figure(f"{ratio} as fast", f"estimated; {unseen}"),
    )


def speedup(item: LatencyComparison) -> Figure:
    """The speed-up with its interval, or the words that forbid to state one."""
    if item.speedup is None:
        return Figure("unmeasured", "one file alone was timed")
    ratio = n.times(item.speedup.value)
    if item.verdict in ("faster", "slower"):
        return Figure(f"{ratio} as fast", n.span(item.speedup.interval, n.times, unit=False))
    return Figure(item.verdict, f"{ratio}, {n.span(item.speedup.interval, n.times, unit=False)}")


def _accuracy(measured: tuple[AccuracyComparison, ...] | Unmeasured) -> tuple[Change, ...]:
    if isinstance(measured, Unmeasured):
        return (Change("Clean accuracy", "", missing=measured.unmeasured),)
    return tuple(
        Change(
            "Clean accuracy",
            f"{_where(item)}, n = {item.dense.total:,}",
            proportion(item.dense),
            proportion(item.compressed),
            drop(item.drop),
        )
        for item in measured
    )


def _robust(measured: RobustnessComparison | Unmeasured) -> Change:
    if isinstance(measured, Unmeasured):
        return Change("Robust accuracy", "", missing=measured.unmeasured)
    model = measured.threat
    detail = f"{model.attack} {model.norm} {model.epsilon}, n = {measured.drop.total:,}"
    change = drop(measured.drop)
    if not measured.conclusive:
        change = Figure("inconclusive", f"{change.text}; see the attack's health")
    return Change(
        "Robust accuracy", detail, proportion(measured.dense.robust), proportion(measured.compressed.robust), change
    )


def drop(paired: PairedDrop) -> Figure:
    """A paired drop as a change, with the most that may be lost, or the least that was won."""
    bound = f"≤ {n.points(paired.upper)} lost" if paired.upper >= 0 else f"≥ {n.points(-paired.upper)} won"
    return Figure(n.signed(n.points(-paired.value)), f"{bound} ({100 * paired.confidence:g} %)")


def _sizes(report: Report) -> tuple[Change, ...]:
    rows = []
    for after in report.artifacts:
        if after.side != "compressed":
            continue
        before = next((a for a in report.artifacts if (a.side, a.format) == ("dense", after.format)), None)
        files = shipped(after)
        if before is None:
            rows.append(Change("File size", files, missing="the dense file was not exported in this format"))
            continue
        change = Figure(n.change(before.total_bytes, after.total_bytes))
        rows.append(
            Change("File size", files, Figure(n.size(before.total_bytes)), Figure(n.size(after.total_bytes)), change)
        )
    return tuple(rows) or (Change("File size", "", missing="no compressed file was exported"),)


def _memory(latency: tuple[LatencyComparison, ...] | Unmeasured) -> tuple[Change, ...]:
    """Peak memory of a process that serves each file, where it was looked at."""
    rows = []
    for item in () if isinstance(latency, Unmeasured) else latency:
        before, after = item.dense.peak_rss_bytes, item.compressed.peak_rss_bytes if item.compressed else None
        if before is not None and after is not None:
            sides = Figure(n.size(before)), Figure(n.size(after))
            rows.append(Change("Peak memory", place(item), *sides, Figure(n.change(before, after))))
    return tuple(rows)


def shipped(artifact: Artifact) -> str:
    """The file and its companions, by name."""
    return " + ".join((artifact.path, *(name for name, _, _ in artifact.companions)))


def _blocks(plan: PrunePlan) -> tuple[Change, ...]:
    """A row where blocks could go, with the names of those that did."""
    if plan.scope == "channels":
        return ()
    names, more = plan.removed_blocks[:_NAMES], len(plan.removed_blocks) - _NAMES
    gone = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    total = plan.removable_blocks
    return (_counted("Blocks", f"without {gone}" if gone else "", total, total - len(plan.removed_blocks)),)


def _counted(label: str, detail: str, before: int, after: int) -> Change:
    change = Figure(n.change(before, after))
    return Change(label, detail, Figure(n.count(before)), Figure(n.count(after)), change)


def _interval(value: float, interval: Interval, show: Callable[[float], str]) -> Figure:
    return Figure(show(value), n.span(interval, show, unit=False))


def _flips(label: str, detail: str, dense: Proportion, drop: PairedDrop) -> Flips:
    both_right = dense.count - drop.dense_only
    both_wrong = drop.total - dense.count - drop.compressed_only
    differs = "differ" if drop.p_value < 0.05 else "no significant difference"
    test = f"McNemar's exact test: {differs}, {n.p_value(drop.p_value)}"
    return Flips(label, detail, drop.total, both_right, drop.dense_only, drop.compressed_only, both_wrong, test)
