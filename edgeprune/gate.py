"""Report + budgets -> Verdict: may this file ship?

Promise: the same report, budgets and file give the same verdict. Bounds are judged, not points: the upper end of
a drop or a latency, the lower end of a speed-up, at the budget's confidence. Only what was measured on the very
file at hand (by sha256) counts. Refused, and never passed: a missing measurement, a report about another file, a
number that makes no sense, a measurement that doubts itself, fewer images than the tolerance needs.

Pure, except for `judge_file`, which hashes the file and its companions. Imports neither torch nor a runtime, and
scipy only when a budget's confidence is not the one that the report's bounds were computed at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeprune.config import BudgetConfig
from edgeprune.errors import ExitCode, UsageError
from edgeprune.files import sha256_of
from edgeprune.findings import AT_LEAST, Case, Finding, findings, least_bound, least_samples, too_few
from edgeprune.records import Artifact, GateRow, Report, Verdict
from edgeprune.remedies import remedy
from edgeprune.reporting.numbers import points, quantity, short

NO_BUDGETS = (
    "no budgets are set, so there is nothing to judge: write into edgeprune.toml, for example,\n"
    '[budget]\naccuracy_drop = "2 pt"\nrobust_accuracy_drop = "2 pt"\nspeedup = "1.5x"'
)

Unit = Literal["fraction", "ms", "x", "bytes"]
_UNITS: dict[str, Unit] = {
    "accuracy_drop": "fraction",
    "robust_accuracy_drop": "fraction",
    "latency_ms": "ms",
    "speedup": "x",
    "size_bytes": "bytes",
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
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise UsageError(
            f"cannot read the file to judge: {path}: {error.strerror or error}",
            hint="name the exported file with --artifact",
        ) from error
    reason = _stranger(report, digest)
    artifact = _shipped(report, digest)
    if artifact is not None:
        reason = reason or _strange_companion(artifact, path.parent)
    return _judge(report, budget, digest, reason)


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
    """Before a run: the tolerances that so many images cannot support, with how many they need.

    `samples` test images are classified, `attacked` of them (default: all) are attacked. A tolerance of 0 can
    never be shown on samples, and says so.
    """
    from edgeprune.robustness.statistics import samples_needed

    limits = budget.limits()
    lines = []
    for name, number in (
        ("accuracy_drop", samples),
        ("robust_accuracy_drop", samples if attacked is None else attacked),
    ):
        limit = limits.get(name)
        if limit is None or number <= 0 or least_bound(number, budget.confidence) <= limit:
            continue
        line = f"{name} = {points(limit)}: {too_few(number, limit, budget.confidence)}"
        if least_samples(limit, budget.confidence) is not None:
            likely = samples_needed(limit, confidence=budget.confidence)
            line += f" even if no image flips, about {likely:,} if one in twenty does"
        lines.append(line)
    return tuple(lines)


def _judge(report: Report, budget: BudgetConfig, digest: str, stale: str) -> Verdict:
    limits = budget.limits()
    if not limits:
        return Verdict(status="no budgets", artifact_sha256=digest, rows=(), reason=NO_BUDGETS)
    artifact = _shipped(report, digest)
    rows: list[GateRow] = []
    for metric, limit in limits.items():
        if stale or artifact is None:
            rows.append(_row(report, metric, limit, Finding("this file", missing=stale), stale=True))
            continue
        found = findings(metric, Case(report, artifact, budget.confidence), limit)
        rows.extend(_row(report, metric, limit, finding) for finding in found)
    rows.sort(key=lambda row: _ORDER.index(row.status))
    return Verdict(status=_status(rows), artifact_sha256=digest, rows=tuple(rows), reason=stale or _summary(rows))


def _row(report: Report, metric: str, limit: float, finding: Finding, *, stale: bool = False) -> GateRow:
    at_least = metric in AT_LEAST
    distance: float | None = None
    status: Literal["pass", "fail", "stale", "missing", "inconclusive"] = "missing"
    if stale:
        status = "stale"
    elif finding.bound is not None:
        distance = finding.bound - limit if at_least else limit - finding.bound
        status = "inconclusive" if finding.doubt else "pass" if distance >= 0 else "fail"
    row = GateRow(
        metric=metric,
        subject=finding.subject,
        operator=">=" if at_least else "<=",
        limit=limit,
        unit=_UNITS[metric],
        actual=finding.actual,
        bound=finding.bound,
        confidence=finding.confidence,
        status=status,
        distance=distance,
        reason=finding.missing or finding.doubt or finding.basis,
        remedy="",
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
    found = {row.status for row in rows}
    if found & {"fail", "stale", "missing"}:
        return "failed"
    return "inconclusive" if "inconclusive" in found else "passed"


def _summary(rows: list[GateRow]) -> str:
    """One line: how many rows pass, and the first that does not."""
    good = sum(row.status == "pass" for row in rows)
    if good == len(rows):
        return "the one budget holds" if good == 1 else f"all {good} budgets hold"
    first = rows[0]
    name = first.metric.replace("_", " ")
    if first.status == "fail" and first.bound is not None:
        could = "may be as low as" if first.operator == ">=" else "may be as high as"
        could = "is" if first.confidence is None else could
        return (
            f"{good} of {len(rows)} budgets hold; {name} {could} {quantity(first.bound, first.unit)}, "
            f"the limit is {quantity(first.limit, first.unit)}"
        )
    return f"{good} of {len(rows)} budgets hold; {name}: {first.reason}"
