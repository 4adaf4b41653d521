"""Report + budgets -> Verdict: may this file ship?

Promise: the same report, budgets and file give the same verdict. Bounds are judged, not points: the upper end of
a drop or a latency, the lower end of a speed-up, at the budget's confidence. Only what was measured on the very
file at hand (by sha256) counts. Refused, and never passed: a missing measurement, a report about another file, a
number that makes no sense, a measurement that doubts itself, fewer images than the tolerance needs.

Pure, except for `judge_file`, which hashes the file and its companions. Imports neither torch nor a runtime, and
scipy only when a budget's confidence is not the one that the report's bounds were computed at.

A budget of the level `warn` has its row, and never decides: a report about another file fails all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeprune.budgets import AT_LEAST, BudgetConfig, Rule
from edgeprune.errors import ExitCode, UsageError
from edgeprune.files import sha256_of
from edgeprune.findings import Case, Finding, findings, least_bound, least_samples, too_few
from edgeprune.protocols import did_you_mean, names
from edgeprune.records import Artifact, GateRow, Report, Verdict
from edgeprune.remedies import remedy
from edgeprune.reporting.numbers import points, quantity, short

NO_BUDGETS = (
    "no budgets are set, so there is nothing to judge: write into edgeprune.toml, for example,\n"
    '[budget]\naccuracy_drop = "2 pt"\nrobust_accuracy_drop = "2 pt"\nspeedup = "1.5x"'
)

NOT_FOR_THIS = (
    "no budget is for this file: those in the tables of [budget] are for another runtime, precision or target"
)

Unit = Literal["fraction", "share", "ms", "x", "bytes"]
_UNITS: dict[str, Unit] = {
    "accuracy": "share",
    "robust_accuracy": "share",
    "accuracy_drop": "fraction",
    "robust_accuracy_drop": "fraction",
    "latency_ms": "ms",
    "latency_p90_ms": "ms",
    "speedup": "x",
    "size_bytes": "bytes",
    "size_ratio": "x",
    "macs_ratio": "x",
    "memory_bytes": "bytes",
}
_ORDER = ("fail", "stale", "missing", "inconclusive", "pass")


def judge(report: Report, budget: BudgetConfig, artifact_sha256: str) -> Verdict:
    """A row for every budget and every measurement of the file `artifact_sha256` that it concerns."""
    return _judge(report, budget, artifact_sha256, _stranger(report, artifact_sha256))


def judge_file(report: Report, budget: BudgetConfig, path: Path) -> Verdict:
    """`judge` on the file at `path`, hashed now, and on the companions beside it, which ship with it.

    UsageError when `path` cannot be read. A companion that is absent or not the measured one makes every row
    stale: the weights of a model.xml are in its model.bin.
    """
    digest = _digest_of(path)
    reason = _stranger(report, digest)
    artifact = _shipped(report, digest)
    if artifact is not None:
        reason = reason or _strange_companion(artifact, path.parent)
    return _judge(report, budget, digest, reason)


def refuse(budget: BudgetConfig, path: Path, reason: str, remedy: str) -> Verdict:
    """The verdict on the file at `path` when the report itself is nothing to judge by: every budget is stale.

    For a report of another schema, and for one that its attestation contradicts. UsageError when the file cannot be
    read.
    """
    digest = _digest_of(path)
    rows = tuple(
        GateRow(
            metric=rule.metric,
            subject="this report",
            operator=">=" if rule.metric in AT_LEAST else "<=",
            limit=rule.limit,
            unit=_UNITS[rule.metric],
            actual=None,
            bound=None,
            confidence=None,
            status="stale",
            distance=None,
            reason=reason,
            remedy=remedy,
            scope=rule.scope,
        )
        for rule in budget.rules()
    )
    return Verdict(status="failed", artifact_sha256=digest, rows=rows, reason=reason)


def exit_code(verdict: Verdict) -> ExitCode:
    """What a command that judged ends with."""
    codes = {
        "passed": ExitCode.DONE,
        "failed": ExitCode.GATE_FAILED,
        "inconclusive": ExitCode.INCONCLUSIVE,
        "no budgets": ExitCode.USAGE,
    }
    return codes[verdict.status]


def unsupported(budget: BudgetConfig, samples: int, attacked: int | None = None) -> tuple[str, ...]:
    """Before a run: the tolerances that so many images cannot support, or hardly, with how many they need.

    `samples` test images are classified, `attacked` of them (default: all) are attacked. A tolerance of 0 can
    never be shown on samples, and says so. Hardly: a file that lost nothing would pass less often than four times in
    five if one image in twenty flips (2 points need 773 images).
    """
    from edgeprune.robustness.statistics import power_at, samples_needed

    limits = budget.limits()
    lines = []
    for name, number in (
        ("accuracy_drop", samples),
        ("robust_accuracy_drop", samples if attacked is None else attacked),
    ):
        limit = limits.get(name)
        if limit is None or number <= 0:
            continue
        if least_bound(number, budget.confidence) <= limit:
            likely = samples_needed(limit, confidence=budget.confidence)
            if number < likely:
                power = power_at(number, limit, confidence=budget.confidence)
                lines.append(
                    f"{name} = {points(limit)}: {number:,} images are few: if one in twenty flips, a file that lost "
                    f"nothing passes with a chance of about {power:.0%}; {likely:,} images make it 80%"
                )
            continue
        line = f"{name} = {points(limit)}: {too_few(number, limit, budget.confidence)}"
        if least_samples(limit, budget.confidence) is not None:
            likely = samples_needed(limit, confidence=budget.confidence)
            line += f" even if no image flips, about {likely:,} if one in twenty does"
        lines.append(line)
    return tuple(lines)


def _digest_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise UsageError(
            f"cannot read the file to judge: {path}: {error.strerror or error}",
            hint="name the exported file with --artifact",
        ) from error


def _judge(report: Report, budget: BudgetConfig, digest: str, stale: str) -> Verdict:
    rules = budget.rules()
    if not rules:
        return Verdict(status="no budgets", artifact_sha256=digest, rows=(), reason=NO_BUDGETS)
    artifact = _shipped(report, digest)
    rows: list[GateRow] = []
    if stale or artifact is None:
        another = Finding("this file", stale=stale)
        rows.extend(_row(report, Rule(rule.metric, rule.limit, scope=rule.scope), another) for rule in rules)
    else:
        case = Case(report, artifact, budget.confidence, budget.allow_estimates, budget.test_digest or "")
        for rule in rules:
            rows.extend(_row(report, rule, finding) for finding in _concerned(rule, rules, case))
    if not rows:
        return Verdict(status="no budgets", artifact_sha256=digest, rows=(), reason=NOT_FOR_THIS)
    rows.sort(key=lambda row: (row.status == "pass", row.level == "warn", _ORDER.index(row.status)))
    return Verdict(
        status=_status(rows),
        artifact_sha256=digest,
        rows=tuple(rows),
        reason=stale or _summary(rows),
        command=report.command,
    )


def _concerned(rule: Rule, rules: tuple[Rule, ...], case: Case) -> tuple[Finding, ...]:
    """The findings that a rule is for: those of its scope, or those that no scope has a rule of its own for."""
    found = findings(rule.metric, case, rule.limit)
    if not rule.scope:
        scopes = {other.scope for other in rules if other.scope and other.metric == rule.metric}
        return tuple(finding for finding in found if not scopes & finding.places)
    known = _known_places(case.report)
    if rule.scope not in known and rule.scope not in _installed():
        hint = did_you_mean(rule.scope, tuple(sorted(known)))
        return (Finding(f"[budget.{rule.scope}]", missing=f"no runtime, precision or target of this name: {hint}"),)
    meant = tuple(finding for finding in found if rule.scope in finding.places)
    if not meant and rule.scope in case.places:
        return (Finding(case.artifact.path, missing=f"not measured on this file in {rule.scope}"),)
    return meant


def _known_places(report: Report) -> frozenset[str]:
    """Every runtime, format, precision and target that the report names."""
    timed = report.latency if isinstance(report.latency, tuple) else ()
    return frozenset(
        {
            report.target.name,
            *(item.runtime.name for item in report.parity),
            *(item.runtime.name for item in timed),
            *(item.target for item in timed),
            *(word for item in report.artifacts for word in (item.format, item.precision)),
        }
    )


def _installed() -> frozenset[str]:
    """Runtimes and targets that a shared configuration may name although this report has nothing of them."""
    from edgeprune.latency.profiles import list_profiles

    return frozenset({*names("runtime"), *(profile.name for profile in list_profiles()), "float32", "int8"})


def _row(report: Report, rule: Rule, finding: Finding) -> GateRow:
    at_least = rule.metric in AT_LEAST
    distance: float | None = None
    bound, actual = (None, None) if finding.stale else (finding.bound, finding.actual)
    status: Literal["pass", "fail", "stale", "missing", "inconclusive"] = "missing"
    if finding.stale:
        status = "stale"
    elif bound is not None:
        distance = bound - rule.limit if at_least else rule.limit - bound
        status = "inconclusive" if finding.doubt else "pass" if distance >= 0 else "fail"
    row = GateRow(
        metric=rule.metric,
        subject=finding.subject,
        operator=">=" if at_least else "<=",
        limit=rule.limit,
        unit=_UNITS[rule.metric],
        actual=actual,
        bound=bound,
        confidence=None if finding.stale else finding.confidence,
        status=status,
        distance=distance,
        reason=finding.stale or finding.missing or finding.doubt or finding.basis,
        remedy="",
        level=rule.level,
        scope=rule.scope,
    )
    return row.model_copy(update={"remedy": remedy(row, finding, report)})


# ----------------------------------------------------------------------------------------- which file, which rows


def _shipped(report: Report, digest: str) -> Artifact | None:
    for artifact in report.artifacts:
        if artifact.side == "compressed" and artifact.sha256 == digest:
            return artifact
    return None


def _stranger(report: Report, digest: str) -> str:
    """Why the report is not about the file of this digest; empty when it is."""
    if _shipped(report, digest) is not None:
        return ""
    known = [f"{item.path} ({short(item.sha256)})" for item in report.artifacts if item.side == "compressed"]
    if any(item.sha256 == digest for item in report.artifacts):
        return f"this is the dense file, not the compressed one: the report judges {' and '.join(known)}"
    about = f"it measured {' and '.join(known)}" if known else "it measured no compressed file"
    return f"the report is not about this file ({short(digest)}): {about}"


def _strange_companion(artifact: Artifact, folder: Path) -> str:
    for name, digest, _ in artifact.companions:
        companion = folder / Path(name).name
        try:
            found = sha256_of(companion)
        except OSError as error:
            return f"{companion.name}, which ships with {artifact.path}, cannot be read: {error.strerror or error}"
        if found != digest:
            return f"{companion.name} ({short(found)}) is not the one that was measured ({short(digest)})"
    return ""


def _status(rows: list[GateRow]) -> Literal["passed", "failed", "inconclusive"]:
    found = {row.status for row in rows if row.level == "error"}
    if found & {"fail", "stale", "missing"}:
        return "failed"
    return "inconclusive" if "inconclusive" in found else "passed"


def _summary(rows: list[GateRow]) -> str:
    """One line: how many rows pass, and the first that does not; then the warnings."""
    good = sum(row.status == "pass" for row in rows)
    warned = [row for row in rows if row.level == "warn" and row.status != "pass"]
    if good == len(rows):
        return "the one budget holds" if good == 1 else f"all {good} budgets hold"
    if len(warned) == len(rows) - good:
        which = " and ".join(dict.fromkeys(_said(row) for row in warned))
        held = f"{good} of {len(rows)} budgets hold; " if good else ""
        return f"{held}{which} only warn{'s' if len(warned) == 1 else ''}: {_fault(warned[0])}"
    first = rows[0]
    return f"{good} of {len(rows)} budgets hold; {_said(first)}{_fault(first, ': ')}"


def _said(row: GateRow) -> str:
    """The budget in a word or two: the units of the settings' names stand with the figures."""
    return row.metric.removesuffix("_ms").removesuffix("_bytes").replace("_", " ")


def _fault(row: GateRow, before_reason: str = "") -> str:
    """What is wrong with a row that does not pass."""
    if row.status == "fail" and row.bound is not None:
        could = "may be as low as" if row.operator == ">=" else "may be as high as"
        could = "is" if row.confidence is None else could
        return (
            f"{' ' if before_reason else ''}{could} {quantity(row.bound, row.unit)}, "
            f"the limit is {quantity(row.limit, row.unit)}"
        )
    return f"{before_reason}{row.reason}"
